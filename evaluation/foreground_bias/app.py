import evaluate
from evaluate.utils import launch_gradio_widget


module = evaluate.load("foreground_bias.py")
launch_gradio_widget(module)
