"""MobileVLM V2's prompts as chat templates. `<image>` marks where the visual tokens go."""

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)
IMAGE_MARK = "<image>"

V1 = (
    "{{ '" + SYSTEM.replace("'", "\\'") + "' }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'USER: ' }}{% else %}{{ ' ' }}{% endif %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>\\n' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}"
    "{% if message['role'] == 'user' %}{{ ' ASSISTANT:' }}{% else %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
)
"""Conversations. The turn behind an end token follows it without a space."""

PLAIN = (
    "{% for message in messages %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>' }}"
    "{% elif message['role'] == 'assistant' %}{{ part['text'] + '\\n' }}{% endif %}"
    "{% endfor %}"
    "{% endfor %}"
)
"""Captions: the question is left out, a line break ends the answer."""

TEMPLATES = {"v1": V1, "plain": PLAIN}
