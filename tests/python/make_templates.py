"""Writes tests/fixtures/templates/rows.jsonl: chat templates, and what transformers' Jinja makes of them.

    make_templates.py [FILE]

The templates are our own, each with one or a few of the constructs that published chat templates
use. Each row has the template, the messages and either `text` and `spans` (what `{% generation %}`
marks, in characters) or `error`: "raised" by the template itself, "syntax" or "failed".
"""

import json
import re
import sys
from pathlib import Path

import jinja2
from transformers.utils import chat_template_utils as utils

CHAT = [
    {"role": "system", "content": "You say: \"yes\" & <no>. "},
    {"role": "user", "content": "  Où est l'été?\nThere.  "},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\n\U0001f389 oui\n"},
    {"role": "user", "content": "Thanks, it\u2019s 10 %"},
]
TURNS = CHAT[1:3]
TOKENS = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}

CHATML = """{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
HEADERS = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") | length %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday: " + date_string|string + "\\n\\n" + system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("one tool call only") }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""
INSTRUCT = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
        {{- raise_exception("After the optional system message, roles must alternate") }}
    {%- endif %}
    {%- set ns.index = ns.index + 1 %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
        {%- if message == user_messages[-1] %}{{- "!" }}{%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- endif %}
{%- endfor %}
"""
THINKING = """{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set reasoning_content = '' %}
    {%- set content = message.content %}
    {%- if message.reasoning_content is string %}
        {%- set reasoning_content = message.reasoning_content %}
    {%- elif '</think>' in content %}
        {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|' + message.role + '|>' + reasoning_content + '|' + content.strip('\\n') }}
    {%- if loop.index0 > ns.last_query_index or (loop.last or (not loop.last and reasoning_content)) %}{{- '+' ~ ns.last_query_index }}{%- endif %}
{%- endfor %}
"""
MARKED = """{{ bos_token }}
{%- for m in messages -%}
{%- if m.role == 'assistant' -%}
{{ '<model>\\n' }}{%- generation -%}{{ m.content | trim }}
{% if loop.last %}{{ 'end' }}{% endif %}{{ '</s>\\n' }}{% endgeneration %}
{%- else -%}
{{ '<' + m.role + '>' + m.content }}
{%- endif -%}
{%- endfor -%}
"""
TOOLS = """{% macro render_extra(values, depth=1) -%}
{%- for key, value in values.items() | sort -%}
{{ '  ' * depth }}{{ key }}={{ value | tojson if value is mapping else value }};
{%- endfor -%}
{%- endmacro -%}
{% set tool = {'type': 'function', 'function': {'name': 'f', 'parameters': {'zeta': [1, 2.0, none, true], 'alpha': "é<&>'\\""}}} -%}
{{ render_extra(tool.function.parameters) }}{{ render_extra({'b': {'c': 1}}, depth=2) }}
{{ tool | tojson }}
{{ tool | tojson(indent=2) }}
{{ tool | tojson(separators=(',', ':'), sort_keys=true) }}
{{ "é\\u2028\\t\\\\" | tojson(ensure_ascii=true) }}{{ "é" | tojson }}{{ [] | tojson(indent=1) }}{{ {} | tojson(indent=1) }}{{ 1e30 | tojson }}{{ 0.1 | tojson }}
"""

TEMPLATES = {
    "chatml": CHATML,
    "headers": HEADERS,
    "instruct": INSTRUCT,
    "thinking": THINKING,
    "marked": MARKED,
    "tools": TOOLS,
    "chatml crlf": CHATML.replace("\n", "\r\n"),
    "trailing newlines": "a\n\n",
    "lines": "a\n  {% if true %}\n  b\n  {%- endif +%}\n c {#- x -#}\n d\n{%+ if true %}e{% endif %}\n",
    "undefined": "[{{ nothing }}{{ messages[0].nothing }}{% for x in nothing %}x{% endfor %}{{ nothing is defined }}{{ nothing or 'd' }}{{ not nothing }}{{ 'a' in (nothing or []) }}]",
    "undefined attribute": "{{ nothing.more }}",
    "undefined added": "{{ nothing + 'x' }}",
    "undefined compared": "{{ nothing == 'x' }}{{ nothing != none }}{{ messages[0].name == none }}{{ messages[9] is defined }}",
    "undefined called": "{{ nothing('x') }}",
    "undefined joined": "{{ 'a' ~ nothing ~ 'b' }}{{ nothing | trim }}{{ nothing | length }}{{ nothing | list }}",
    "values printed": "{{ true }} {{ false }} {{ none }} {{ 1.0 }} {{ 1e3 }} {{ 3 / 2 }} {{ 4 / 2 }} {{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 2 ** 10 }} {{ 10 ** 20 }} {{ [1, 'a', none, true] }} {{ {'a': 1, 'b': [2.5]} }} {{ (1, 'x') }} {{ (1,) }} {{ 1e16 }} {{ 1.5e-7 }} {{ 1e15 }} {{ 12345.678 }}",
    "values joined": "{{ true ~ none ~ 1.5 }}{{ [true, none] | join(',') }}{{ true | string }}{{ 1 | string + 'x' }}",
    "quotes printed": "{{ ['it\\'s', 'a\"b', 'é\\n\\t', '\\\\'] }}{{ messages[0] }}",
    "int float": "{{ '12' | int + 1 }}{{ 'x' | int(7) }}{{ '1.5' | float }}{{ 2.7 | int }}{{ '0x1f' | int(base=16) }}{{ 3.14159 | round(2) }}{{ 2.5 | round }}",
    "comparisons": "{{ 1 < 2 < 3 }}{{ 1 == 1.0 }}{{ 'a' < 'b' }}{{ none is none }}{{ 'x' is not none }}{{ true is true }}{{ false is false }}{{ 1 is number }}{{ 1.5 is float }}{{ 1 is integer }}{{ true is boolean }}{{ [] is sequence }}{{ 'a' is iterable }}{{ {} is mapping }}{{ 3 is odd }}{{ 4 is divisibleby(2) }}{{ 'a' is in ['a'] }}{{ 5 is gt(3) }}{{ x is undefined }}{{ raise_exception is callable }}{{ 'A' is upper }}{{ 1 is sameas 1 }}{{ 'a' is eq 'a' }}",
    "true is number": "{{ true is number }}{{ true is integer }}{{ true == 1 }}{{ 'a' is sequence }}{{ {} is sequence }}{{ {} is iterable }}{{ none is iterable }}",
    "if without else": "[{{ 'a' if false }}{{ 'b' if true }}{{ ('a' if false) is defined }}]",
    "slices": "{% set l = [1, 2, 3, 4, 5] %}{{ l[1:] }}{{ l[:-1] }}{{ l[::-1] }}{{ l[-2:] }}{{ l[1:4:2] }}{{ l[-1] }}{{ 'héllo'[1:3] }}{{ 'héllo'[::-1] }}{{ 'abc'[-1] }}{{ l[10:] }}{{ 'abc'[0] }}{{ messages[1:][0].role }}{{ l[3:0:-1] }}",
    "string constants": "{{ 'a' 'b' \"c\" }}{{ 'x\\ty\\u00e9\\x41' }}{{ 'a' * 3 }}{{ '-' * 0 }}{{ 3 * 'ab' }}{{ [0] * 3 }}{{ [1] + [2] }}{{ (1, 2) + (3,) }}",
    "braces": "{{ {'a': {'b': 1}} }}{{ {'a': {}}['a'] }}{{ '}}' }}{% set x = {'q': {'r': '%}'}} %}{{ x.q.r }}{{ 2 * 3 * [4][0] + 1 }}{{ '-' * (1 + 2) }}{{ 2 * messages | length }}",
    "percent": "{{ '%s-%s' | format('a', 1) }}{{ '%05d' | format(42) }}",
    "str.format": "{{ '{} {}'.format('a', 1) }}{{ '{0}{1}{0}'.format('a', 'b') }}{{ '{x:>5}|{x:<3}|{y:.1f}'.format(x='a', y=2.25) }}{{ '{:03d}'.format(7) }}",
    "str methods": "{% set s = '  Ab c-Ab  ' %}[{{ s.strip() }}][{{ s.lstrip() }}][{{ s.rstrip() }}][{{ s.strip(' A') }}][{{ s.upper() }}][{{ s.lower() }}][{{ 'ab c'.title() }}][{{ 'ab C'.capitalize() }}][{{ s.replace('Ab', 'x') }}][{{ s.replace('Ab', 'x', 1) }}][{{ s.split() }}][{{ 'a,b,,c'.split(',') }}][{{ 'a,b,c'.split(',', 1) }}][{{ 'a\\nb\\r\\nc'.splitlines() }}][{{ s.count('Ab') }}][{{ s.find('b') }}][{{ s.find('z') }}][{{ s.rfind('A') }}][{{ 'abc'.startswith('ab') }}][{{ 'abc'.endswith(('x', 'c')) }}][{{ ', '.join(['a', 'b']) }}][{{ '12'.isdigit() }}{{ 'a1'.isalnum() }}{{ 'ab'.isalpha() }}{{ ' '.isspace() }}{{ 'AB'.isupper() }}{{ 'ab'.islower() }}{{ '5'.isnumeric() }}]",
    "str methods 2": "{{ 'a.b.c'.rsplit('.', 1) }}{{ 'a.b'.rsplit('.') }}{{ 'a=b=c'.partition('=') }}{{ 'a=b=c'.rpartition('=') }}{{ 'abc'.removeprefix('a') }}{{ 'abc'.removesuffix('c') }}{{ '7'.zfill(3) }}{{ '-7'.zfill(4) }}[{{ 'a'.center(5) }}][{{ 'a'.ljust(3) }}][{{ 'a'.rjust(3, '*') }}]{{ 'abc'.index('c') }}{{ 'abca'.rindex('a') }}{{ 'aBc'.swapcase() }}{{ 'ß'.casefold() }}{{ ' a  b '.split(' ') }}{{ 'a b  c'.split(none, 1) }}{{ 'abc'.isidentifier() }}{{ 'Ab'.istitle() }}{{ 'a'.isprintable() }}{{ '5'.isdecimal() }}{{ 'a\\nb'.splitlines(true) }}{{ 'abc'.startswith('b', 1) }}{{ 'aXbX'.find('X', 2) }}{{ 'a,b'.split(sep=',') }}{{ 'a,b,c'.split(',', maxsplit=1) }}",
    "str.split edge": "{{ ''.split(',') }}{{ ''.split() }}{{ ' \\n '.split() }}{{ 'ab'.split('ab') }}{{ 'x'.replace('', '-') }}",
    "str.split empty": "{{ 'a'.split('') }}",
    "unicode strip": "[{{ '\\u00a0\\u2003x\\u200b\\x1f '.strip() }}][{{ '\\x85x'.lstrip() }}][{{ 'x\\x1c'.rstrip() }}][{{ '\\u00a0 x\\ufeff' | trim }}]{{ '\\u00a0a\\x1cb'.split() | length }}",
    "dict methods": "{% set d = {'b': 1, 'a': 2} %}{{ d.items() | list }}{{ d.keys() | list }}{{ d.values() | list }}{{ d.get('a') }}{{ d.get('z') }}{{ d.get('z', 'no') }}{{ d['b'] }}{{ d.b }}{{ 'a' in d }}{{ d | length }}{{ d | list }}{% for k, v in d.items() %}{{ k }}{{ v }}{% endfor %}{% for k in d %}{{ k }}{% endfor %}{{ d | dictsort }}{{ d | items | list }}{{ d.copy() }}",
    "dict called": "{{ dict(a=1, b='x') }}{{ dict([('k', 2)]) }}{{ dict({'q': 1}, r=2) }}",
    "dict attribute named like a method": "{% set d = {'items': [1], 'get': 2} %}{{ d['items'] }}{{ d['get'] }}",
    "list methods": "{% set l = ['a', 'b', 'a'] %}{{ l.count('a') }}{{ l.index('b') }}{{ l.copy() }}{{ l | unique | list }}{{ l | sort }}{{ l | reverse | list }}{{ l | first }}{{ l | last }}{{ l | join('-') }}{{ [3, 1, 2] | sort(reverse=true) }}{{ [3, 1] | min }}{{ [3, 1] | max }}{{ [1, 2] | sum }}{{ range(5) | list }}{{ range(1, 10, 3) | list }}{{ range(3) | length }}",
    "list.append": "{% set l = [] %}{{ l.append(1) }}",
    "dict.update": "{% set d = {} %}{{ d.update({'a': 1}) }}",
    "map select": "{{ messages | map(attribute='role') | list }}{{ messages | map('length') | list }}{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | join('|') }}{{ messages | rejectattr('role', 'eq', 'user') | list | length }}{{ [1, 2, 3] | select('odd') | list }}{{ [1, 2, 3] | reject('odd') | list }}{{ ['a', 'b'] | map('upper') | join }}{{ messages | selectattr('tool_calls', 'defined') | list | length }}{{ messages | selectattr('role', 'in', ['user']) | list | length }}{{ messages | map(attribute='nope', default='-') | join }}",
    "groupby batch": "{% for role, list in messages | groupby('role') %}{{ role }}={{ list | length }};{% endfor %}{{ [1,2,3,4,5] | batch(2) | list }}{{ [1,2,3,4,5] | batch(2, 0) | list }}{{ [1,2,3,4,5] | slice(2) | list }}",
    "text filters": "{{ 'a b' | title }}{{ 'a' | upper }}{{ 'A' | lower }}{{ 'ab' | capitalize }}{{ 'aab' | replace('a', 'x') }}{{ 'aab' | replace('a', 'x', 1) }}{{ ' a ' | trim }}{{ 'xax' | trim('x') }}{{ 'a\\nb' | indent(2) }}{{ 'a\\nb' | indent(4, true) }}{{ 'a\\n\\nb' | indent(2, blank=true) }}{{ none | default('d') }}{{ nope | default('d') }}{{ '' | default('d', true) }}{{ nope | d('e') }}{{ '<a&\"b\\'>' | e }}{{ '<b>' | safe }}{{ 'abc' | first }}{{ 'abc' | last }}{{ 'abc' | list }}{{ 'abc' | reverse }}{{ -3 | abs }}",
    "text filters 2": "{{ 'a b/c?é' | urlencode }}{{ '<a>' | forceescape }}{{ 'a' | string }}{{ 'abc' | count }}{{ '%s and %s' | format(1, 'b') }}",
    "loops": "{% for m in messages %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.cycle('x', 'y') }}{{ loop.depth }}{% if loop.previtem is defined %}{{ loop.previtem.role }}{% endif %}{% if loop.nextitem is defined %}{{ loop.nextitem.role }}{% endif %}{{ loop.changed(m.role) }};{% endfor %}{% for x in [] %}{% else %}none{% endfor %}{% for m in messages if m.role == 'user' %}{{ loop.index }}{{ loop.length }}{% endfor %}{% for a, b in [(1, 2), [3, 4]] %}{{ a + b }},{% endfor %}",
    "loops recursive": "{% for x in [{'n': 1, 'c': [{'n': 2, 'c': []}]}] recursive %}{{ x.n }}[{{ loop(x.c) }}]{{ loop.depth }}{% endfor %}",
    "break continue": "{% for i in range(10) %}{% if i == 2 %}{% continue %}{% endif %}{% if i > 4 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "set in loops": "{% set x = 1 %}{% for i in range(3) %}{% set x = x + 1 %}{{ x }}{% endfor %}{{ x }}{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set block %}  {{ a }} z{% endset %}[{{ block }}]{% set up | upper %}q{% endset %}{{ up }}{% with y = 3 %}{{ y }}{% endwith %}{{ y is defined }}{% if true %}{% set inside = 5 %}{% endif %}{{ inside }}",
    "namespace": "{% set ns = namespace(found=false, n=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.found = true %}{% set ns.n = ns.n + 1 %}{% endif %}{% endfor %}{{ ns.found }}{{ ns.n }}{{ ns['n'] }}{{ ns.none is defined }}{% set ns2 = namespace({'a': 1}) %}{{ ns2.a }}",
    "macros": "{% macro m(a, b='x', c=none) %}{{ a }}{{ b }}{{ c is none }}{{ caller is defined }}{% endmacro %}{{ m(1) }}{{ m(1, c=2) }}{{ m(a=1, b=2) }}{% call m('q') %}z{% endcall %}{% macro w() %}<{{ caller() }}>{% endmacro %}{% call w() %}in{% endcall %}{% macro p(x) %}{{ x.role }}{% endmacro %}{% for y in messages %}{{ p(y) }}{% endfor %}",
    "macro missing argument": "{% macro v(a, b) %}[{{ a }}{{ b is defined }}]{% endmacro %}{{ v(1) }}",
    "macro sees globals": "{% set g = 1 %}{% macro v() %}{{ g }}{{ messages | length }}{{ bos_token }}{% endmacro %}{{ v() }}",
    "call with arguments": "{% macro list(items) %}{% for i in items %}{{ caller(i) }}{% endfor %}{% endmacro %}{% call(x) list([1, 2]) %}<{{ x }}>{% endcall %}",
    "filter block": "{% filter upper | trim %} ab {{ 'c' }}{% endfilter %}",
    "raw": "{% raw %}{{ x }}{% generation %}{% endraw %}{# {% generation %} #}{{ '{% generation %}' }}",
    "generation in if": "{% for m in messages %}{% if m.role == 'assistant' %}a{% generation %}{{ m.content }}{% endgeneration %}b{% else %}{{ m.content }}{% endif %}{% endfor %}",
    "generation whitespace": "x \n  {%-   generation   -%}  \n a \n {%- endgeneration -%}  y\n {% generation %}\n b\n {% endgeneration %}\n c",
    "generation nested set": "{% for m in messages %}{% generation %}{% set z = m.role %}{{ z }}{{ loop.index }}{% endgeneration %}{{ z is defined }}{% endfor %}",
    "generation in macro": "{% macro a(m) %}{% generation %}{{ m }}{% endgeneration %}{% endmacro %}{% for m in messages %}{{ m.role }}:{{ a(m.content) }}{% endfor %}",
    "generation empty": "a{% generation %}{% endgeneration %}b",
    "generation not closed": "a{% generation %}b",
    "endgeneration alone": "a{% endgeneration %}b",
    "raise": "{{ raise_exception('Roles: no.') }}",
    "raise in branch": "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}x",
    "strftime_now": "{{ strftime_now('%Y') | length }}{{ strftime_now('%d %B %Y') | length > 8 }}{{ strftime_now('100 %% %H:%M')[:6] }}{{ strftime_now('') }}{{ strftime_now('%z%Z') }}{{ strftime_now('é %-d')[:2] }}",
    "tokens": "{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ unk_token }}{{ sep_token is defined }}{{ tools is none }}{{ documents is none }}{{ tools is defined }}{{ tools }}{{ add_generation_prompt }}{{ enable_thinking is defined }}{{ builtin_tools is defined }}{{ custom_tools }}",
    "list comprehension": "{{ [x for x in messages] }}",
    "unknown function": "{{ no_such_function('x') }}",
    "unknown filter": "{{ 'x' | no_such_filter }}",
    "unknown test": "{{ 'x' is no_such_test }}",
    "unknown method": "{{ 'x'.no_such_method() }}",
    "unknown tag": "{% no_such_tag %}",
    "include": "{% include 'other' %}",
    "private attribute": "{{ 'x'.__class__ }}",
    "index by variable": "{% set k = 'role' %}{{ messages[0][k] }}{{ messages[messages | length - 1].role }}{{ messages[-1]['role'] }}{{ messages.0.role }}",
    "in": "{{ 'a' in 'abc' }}{{ 'x' not in ['a'] }}{{ 'role' in messages[0] }}{{ 1 in (1, 2) }}{{ 'content' in messages[0].keys() }}",
    "boolean logic": "{{ true and 'x' or 'y' }}{{ '' or 'z' }}{{ none or 0 }}{{ not '' }}{{ (messages and 1) }}{{ 1 and 0 }}",
    "content parts": "{% for m in messages %}{% if m.content is string %}s{% elif m.content is iterable %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}{% endfor %}",
    "json of messages": "{{ messages | tojson }}{{ messages[0] | tojson(indent=4) }}{{ messages | map(attribute='content') | list | tojson }}",
    "json of undefined": "{{ nothing | tojson }}",
    "json of numbers": "{{ [1, -2, 1.0, 1e100, 1.5e-9, 123456789012345678901, true, none, 'x'] | tojson }}{{ {'1': 1, 2: 3, true: 4, none: 5} | tojson }}",
    "json of escapes": "{{ '\\x00\\x1f\\x7f\\u2028🎉/\"' | tojson }}{{ '🎉\\x7f' | tojson(ensure_ascii=true) }}",
    "escaped": "{{ messages[0].content }}{{ messages[0].content | escape }}{{ messages[0].content | e | length }}",
    "do": "{% do messages %}",
    "line comment": "a {# {{ x }} \n #} b {#- c -#} d",
    "two spaces kept": "a  {{ 'b' }}  c \n\n d {{- ' e ' -}}  f",
    "tab indented block": "x\n\t{% if true %}\n\ty\n\t{% endif %}\nz",
    "multiline tag": "{% set x = [\n 1,\n 2,\n] %}{{ x | length }}{{\n x[0]\n}}",
    "trailing commas": "{{ [1, 2,] }}{{ {'a': 1,} }}{{ dict(a=1,) }}",
    "number literals": "{{ 1_000 }}{{ 0x1F }}{{ 0b11 }}{{ 0o17 }}{{ 1.5e3 }}{{ 12345678901234567890 }}",
    "python names": "{{ True }}{{ False }}{{ None }}{{ True and not False }}",
    "self": "{% block x %}y{% endblock %}{{ self.x() }}",
    "caller escapes": "{% set t %}<{{ messages[0].role }}>{% endset %}{{ t }}{{ t | length }}{{ t == '<system>' }}{{ t.upper() }}",
    "last user": "{% set users = messages | selectattr('role', 'equalto', 'user') | list %}{{ users | length }}{{ users[-1].content }}{{ (users | last).content }}{{ users[0] == messages[1] }}",
    "string of list": "{{ messages | string | length > 10 }}{{ ['a'] | string }}{{ {'a': 'b'} | string }}{{ ('a', none) | string }}",
    "float text": "{{ 1.0 ~ '' }}{{ 100.0 }}{{ 1e22 }}{{ -1e300 }}{{ 0.0001 }}{{ 0.00001 }}{{ 123456789.123 }}{{ 1e15 }}{{ -0.0 }}{{ 1/3 }}",
    "range too long": "{% for i in range(1000000000) %}{% endfor %}",
}  # fmt: skip


def row(name, template, messages, prompt):
    made = {"name": name, "template": template, "messages": messages, "add_generation_prompt": prompt}
    try:
        compiled = utils._compile_jinja_template(template)
        given = dict(messages=json.loads(json.dumps(messages)), tools=None, documents=None, add_generation_prompt=prompt)
        text, spans = utils._render_with_assistant_indices(compiled_template=compiled, **given, **TOKENS)
        return made | {"text": text, "spans": [list(span) for span in spans]}
    except jinja2.TemplateSyntaxError:
        return made | {"error": "syntax"}
    except Exception as error:
        raised = type(error) is jinja2.TemplateError
        return made | {"error": "raised", "said": str(error)} if raised else made | {"error": "failed"}


def main():
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "fixtures/templates/rows.jsonl"
    rows = []
    for name, template in TEMPLATES.items():
        talks = re.search(r"messages", template) is not None
        for messages, prompt in ((CHAT, True), (TURNS, False)) if talks else ((TURNS, False),):
            rows.append(row(name, template, messages, prompt))
    out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    errors = [row["name"] for row in rows if "error" in row]
    print(f"{len(rows)} rows, of which {len(errors)} are refused: {', '.join(dict.fromkeys(errors))}")


if __name__ == "__main__":
    main()
