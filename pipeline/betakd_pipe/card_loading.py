"""The part of a model card that says how to load the model: code that runs as it stands, beside an image photo.jpg."""

import json
import re
from pathlib import Path

LOADING_TITLE = "## Load it"
WITH_PILLOW = ("llava", "gemma3")
"""Families whose processor needs no torchvision; through Pillow they see what they saw in training."""

_TRANSFORMERS = """from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

folder = "{source}"
model = AutoModelForImageTextToText.from_pretrained(folder)
processor = AutoProcessor.from_pretrained(folder{backend})

parts = [{{"type": "image", "image": Image.open("photo.jpg")}}, {{"type": "text", "text": "What is it?"}}]
inputs = processor.apply_chat_template(
    [{{"role": "user", "content": parts}}],
    add_generation_prompt=True,
    tokenize=True,
    return_dict=True,
    return_tensors="pt",
)
answer = model.generate(**inputs, max_new_tokens=64, do_sample=False)
print(processor.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))"""

_MOBILEVLM = """from PIL import Image
from betakd_stages.models.mobilevlm.model import MobileVlmForConditionalGeneration
from betakd_stages.models.mobilevlm.processor import MobileVlmProcessor
{download}
folder = {folder}
model = MobileVlmForConditionalGeneration.from_pretrained(folder)
processor = MobileVlmProcessor.from_pretrained(folder)

parts = [{{"type": "image"}}, {{"type": "text", "text": "What is it?"}}]
text = processor.apply_chat_template([{{"role": "user", "content": parts}}])
inputs = processor(images=Image.open("photo.jpg"), text=text)
answer = model.generate(**inputs, max_new_tokens=64, do_sample=False)
print(processor.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))"""

_ADAPTER = """from peft import PeftModel
from transformers import AutoModelForImageTextToText

student = AutoModelForImageTextToText.from_pretrained("{base}")
model = PeftModel.from_pretrained(student, "{source}")"""


def loading_section(model: Path, source: str, *, is_repository: bool = False) -> str:
    """How to load the model of a folder, which those who read the card find at `source`, a folder or the Hub's id."""
    family = model_type(model)
    if family == "mobilevlm":
        code = _MOBILEVLM.format(
            download="from huggingface_hub import snapshot_download\n" if is_repository else "",
            folder=f'snapshot_download("{source}")' if is_repository else f'"{source}"',
        )
        hint = (
            "With betakd-pipe installed; transformers has no class for MobileVLM V2. The published code of MobileVLM "
            "loads the folder as well."
        )
    else:
        pillow = family in WITH_PILLOW
        code = _TRANSFORMERS.format(source=source, backend=', backend="pil"' if pillow else "")
        hint = "With transformers alone."
        if not pillow:
            hint += " Processors that take videos too need torchvision, whether or not there is a video."
    return f"{hint}\n\n```python\n{code}\n```"


def adapter_section(base: str, source: str) -> str:
    """How to load an adapter that lies at `source` beside the student it was made for."""
    return (
        "With transformers and peft, on the very student it was made for.\n\n"
        f"```python\n{_ADAPTER.format(base=base, source=source)}\n```"
    )


def with_loading_section(text: str, section: str) -> str:
    """A card's text with another section on loading; the same text where it has none."""
    pattern = re.compile(rf"(?<=^{LOADING_TITLE}\n\n).*?(?=\n\n## |\Z)", re.DOTALL | re.MULTILINE)
    return pattern.sub(lambda _: section, text, count=1)


def library_of(model: Path) -> str:
    """The library that loads the model of a folder, as the Hub's metadata name it."""
    return "betakd-pipe" if model_type(model) == "mobilevlm" else "transformers"


def model_type(model: Path) -> str:
    """The family of a model folder."""
    family: str = json.loads((model / "config.json").read_text(encoding="utf-8"))["model_type"]
    return family
