"""transformers' Auto classes answer with this package's model and processor once this has been imported::

    import ernie45.hf
    from transformers import AutoModelForCausalLM, AutoProcessor

    model = AutoModelForCausalLM.from_pretrained("baidu/ERNIE-4.5-VL-28B-A3B-PT", device_map="auto", trust_remote_code=True)

Folders and names of other models go to transformers as before. Nothing that a model's repository brings as code is run,
whatever `trust_remote_code` says.
"""

from ernie45.hf.auto import install
from ernie45.hf.model import ErnieForCausalLM
from ernie45.hf.processor import ErnieProcessor, ErnieTokenizer

__all__ = ["ErnieForCausalLM", "ErnieProcessor", "ErnieTokenizer"]

install()
