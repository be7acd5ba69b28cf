"""Golden conversations: the families' chat templates, rendered by transformers.

    python3.11 -m venv venv && venv/bin/pip install -r tools/golden/requirements.txt jinja2
    venv/bin/python tools/golden/chat_templates.py tests/golden

Writes chat_templates.json: for each template and conversation its text, and that text's ids under
the family's small tokenizer (of tests/golden/tokenizers, which must be there); for each template the
same of what a prompt for an answer adds. Texts of the templates are the ones the families
publish beside their weights; Qwen2-Audio's is in transformers itself.
"""

import json
import pathlib
import sys

from tokenizers import Tokenizer
from transformers.models.qwen2_audio.processing_qwen2_audio import Qwen2AudioProcessor
from transformers.utils.chat_template_utils import render_jinja_template

CHATML = ("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + "
          "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
          "{{ '<|im_start|>assistant\n' }}{% endif %}")
QWEN2 = ("{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
         "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
         "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
         "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
TOOL = r"""
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\n<tool_response>\n' }}
        {{- message.content }}
        {{- '\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
"""
# The branches for lists of tools and calls as objects are left out of the next two.
QWEN25 = r"""
{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}
{%- else %}
    {{- '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
""".strip() + TOOL + "{%- endif %}"
QWEN3 = r"""
{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set reasoning_content = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {%- if loop.last or (not loop.last and reasoning_content) %}
                {{- '<|im_start|>' + message.role + '\n<think>\n' + reasoning_content.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
            {%- else %}
                {{- '<|im_start|>' + message.role + '\n' + content }}
            {%- endif %}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\n' }}
""".strip() + TOOL + r"""
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}"""
QWEN2_VL = (
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}{{ message['content'] }}"
    "<|im_end|>\n{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' or 'image' in content "
    "or 'image_url' in content %}{% set image_count.value = image_count.value + 1 %}{% if add_vision_id %}Picture "
    "{{ image_count.value }}: {% endif %}<|vision_start|><|image_pad|><|vision_end|>{% elif content['type'] == 'video' or "
    "'video' in content %}{% set video_count.value = video_count.value + 1 %}{% if add_vision_id %}Video "
    "{{ video_count.value }}: {% endif %}<|vision_start|><|video_pad|><|vision_end|>{% elif 'text' in content %}"
    "{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}"
    "<|im_start|>assistant\n{% endif %}")
QWEN25_OMNI = (
    "{% set audio_count = namespace(value=0) %}{% set image_count = namespace(value=0) %}{% set video_count = "
    "namespace(value=0) %}{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>"
    "system\nYou are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n{% if "
    "message['content'] is string %}{{ message['content'] }}<|im_end|>\n{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}{% set image_count.value = "
    "image_count.value + 1 %}{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}<|vision_bos|><|IMAGE|>"
    "<|vision_eos|>{% elif content['type'] == 'audio' or 'audio' in content or 'audio_url' in content %}{% set "
    "audio_count.value = audio_count.value + 1 %}{% if add_audio_id %}Audio {{ audio_count.value }}: {% endif %}"
    "<|audio_bos|><|AUDIO|><|audio_eos|>{% elif content['type'] == 'video' or 'video' in content %}{% set "
    "video_count.value = video_count.value + 1 %}{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}"
    "<|vision_bos|><|VIDEO|><|vision_eos|>{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}")
QWEN2_AUDIO = Qwen2AudioProcessor.default_chat_template.fget(None)

# name: template, tokenizer, the kinds of media it knows
TEMPLATES = {
    "chatml": (CHATML, "qwen", ""), "qwen2": (QWEN2, "qwen", ""), "qwen2_5": (QWEN25, "qwen", ""),
    "qwen3": (QWEN3, "qwen", ""), "llama3": (LLAMA3, "llama3", ""),
    "qwen2_vl": (QWEN2_VL, "qwen", "image video"),
    "qwen2_5_omni": (QWEN25_OMNI, "qwen", "image video audio"),
    "qwen2_audio": (QWEN2_AUDIO, "qwen", "audio"),
}


def text(role, content):
    return {"role": role, "content": content}


def media(role, *parts):
    """A part is "image", "audio", "video" or, starting with a colon, text."""
    return {"role": role, "content": [
        {"type": "text", "text": part[1:]} if part[0] == ":" else {"type": part, part: "file"}
        for part in parts]}


CONVERSATIONS = {
    "one_question": [text("user", "What is 12 + 30?"), text("assistant", "42")],
    "system": [text("system", "Be brief."), text("user", "Who wrote Faust?"),
               text("assistant", "Goethe."), text("user", "When?"), text("assistant", "1808 to 1832.")],
    "prompt": [text("system", "You are a poet."), text("user", "漢字で書いてください。")],
    "white_space": [text("user", "\n\n  two lines\n\tand tabs \u3000\x1f\n"),
                    text("assistant", "  spaces around \n"), text("user", " \n "),
                    text("assistant", "x\u2028")],
    "line_breaks": [text("user", "\n\nfirst"), text("assistant", "a\n\nb\r\n"), text("user", "\r\n")],
    "late_system": [text("user", "Hi"), text("system", "Now be rude."), text("assistant", "No."),
                    text("user", "Why?"), text("assistant", "I don't want to, it's late.")],
    "tools": [text("user", "Weather in Oslo and Rome?"),
              text("assistant", "<tool_call>\n{\"name\": \"w\", \"arguments\": {\"c\": \"Oslo\"}}\n</tool_call>"),
              text("tool", "3 degrees"), text("tool", "{\"t\": 17}"),
              text("assistant", "3 and 17 degrees."), text("user", "Thanks"), text("assistant", "Welcome!")],
    "tools_last": [text("user", "Weather?"), text("assistant", "<think>\nask\n</think>\n\ncalling"),
                   text("tool", "rain"), text("assistant", "Rain.")],
    "results_as_user": [text("user", "Weather?"), text("assistant", "<think>first</think>calling"),
                        text("user", "<tool_response>\nrain\n</tool_response>"),
                        text("assistant", "plain"), text("user", "<tool_response> no end"),
                        text("assistant", "done")],
    "thoughts": [text("user", "2+2?"), text("assistant", "<think>\n\nfour, surely\n\n</think>\n\n4"),
                 text("user", "3+3?"),
                 text("assistant", "<think>\nthree and three\nis six\n</think>\n\n\n6")],
    "thought_without_start": [text("user", "2+2?"), text("assistant", "hm\n</think>\nno\n</think>\n\n4\n")],
    "empty_thought": [text("user", "2+2?"), text("assistant", "<think>\n\n</think>\n\n4")],
    "no_question": [text("system", "s"), text("assistant", "I speak first.")],
    "empty": [text("user", ""), text("assistant", "x"), text("user", "y"), text("assistant", "")],
    # Read as they are meant: the text of a sample with data.text_has_specials.
    "specials": [text("user", "a <|im_start|> b<|im_end|>\n<|endoftext|>x<tool_call> <|begin_of_text|>"),
                 text("assistant", "<|box_start|>(1,2)<|box_end|> and <|eot_id|>"),
                 text("user", "<|reserved_special_token_0|>."), text("assistant", "<|end_of_text|>no")],
    "image": [media("user", "image", ":What number?"), media("assistant", ":47"),
              media("user", ":And here? ", "image", "image"), media("assistant", ":12 ", ":and 13")],
    "video": [media("system", ":Look."), media("user", "video", "image", ":\nWhat moves?"),
              media("assistant", ":A ball.")],
    "audio": [media("user", "audio", ":What word?"), media("assistant", ":blue"),
              media("user", ":And\n", "audio", "audio", ":\n\n?"), media("assistant", ":red, green")],
}


def main():
    folder = pathlib.Path(sys.argv[1])
    tokenizers = {name: Tokenizer.from_file(str(folder / "tokenizers" / name / "tokenizer.json"))
                  for name in ("qwen", "llama3")}

    def with_ids(name, rendered):
        ids = tokenizers[name].encode(rendered, add_special_tokens=False).ids
        return {"text": rendered, "ids": ids}

    prompts, cases = {}, []
    for template, (source, tokenizer, kinds) in TEMPLATES.items():
        def render(messages, **options):
            return render_jinja_template([messages], chat_template=source,
                                         bos_token="<|begin_of_text|>", **options)[0][0]

        for name, messages in CONVERSATIONS.items():
            used = {part["type"] for message in messages if isinstance(message["content"], list)
                    for part in message["content"]} - {"text"}
            if not used <= set(kinds.split()) or (not kinds and isinstance(messages[0]["content"], list)):
                continue
            case = with_ids(tokenizer, render(messages))
            cases.append({"template": template, "conversation": name, **case})
            for key, options in {"prompt": {}, "answering": {"enable_thinking": False}}.items():
                longer = render(messages, add_generation_prompt=True, **options)
                assert longer.startswith(case["text"])
                prompt = with_ids(tokenizer, longer[len(case["text"]):])
                assert with_ids(tokenizer, longer)["ids"] == case["ids"] + prompt["ids"]
                assert prompts.setdefault(template, {}).setdefault(key, prompt) == prompt
    path = folder / "chat_templates.json"
    made = {"conversations": CONVERSATIONS, "prompts": prompts, "cases": cases}
    path.write_text(json.dumps(made, ensure_ascii=False, separators=(",", ":")).replace(
        '{"template"', '\n{"template"') + "\n", encoding="utf-8")
    print(f"{path}: {len(cases)} cases, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
