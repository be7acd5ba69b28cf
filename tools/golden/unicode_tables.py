"""Makes dataloader/bpe/unicode_tables.cc: where PyPI's `tokenizers` knows another Unicode than we.

    python3.11 -m venv venv && venv/bin/pip install -r tools/golden/requirements.txt
    venv/bin/python tools/golden/unicode_tables.py dataloader/bpe/unicode_tables.cc

Debian 12's PCRE2 has Unicode 14, as Python 3.11. Two lists come out:
  kNewer       code points without a category in Unicode 14 that have one in the reference's
               regular expressions, with that category
  kNfcUnknown  code points of Unicode 14 that the reference's NFC, which is older still, neither
               reorders nor composes
"""

import sys
import unicodedata

from tokenizers import Regex, normalizers, pre_tokenizers

CATEGORIES = "Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Cf".split()
ALL = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
NFC = normalizers.NFC()


def members(pattern):
    """The code points that the reference's regular expression `pattern` matches."""
    split = pre_tokenizers.Split(Regex(pattern), "removed", invert=True)
    pieces = split.pre_tokenize_str("".join(map(chr, ALL)))
    return {ord(letter) for piece, _ in pieces for letter in piece}


def newer():
    found = {}
    for category in CATEGORIES:
        for c in members(r"\p{%s}" % category):
            if unicodedata.category(chr(c)) == "Cn":
                found[c] = category
            elif category[0] != "M":  # a few marks moved between Mn and Mc
                assert unicodedata.category(chr(c)) == category, (hex(c), category)
    return found


def composition_partners():
    """The second code points of canonical compositions, with a first one each."""
    pairs = {}
    for c in ALL:
        parts = unicodedata.decomposition(chr(c)).split()
        if len(parts) == 2 and parts[0][0] != "<" and unicodedata.normalize("NFC", chr(c)) == chr(c):
            pairs.setdefault(int(parts[1], 16), []).append(int(parts[0], 16))
    return pairs


def nfc_unknown():
    unknown = set()
    for c in ALL:
        # One mark of a higher and one of a lower combining class around c.
        for text in ("q\u0315" + chr(c) + "\u0327", "q" + chr(c) + "\u0327", chr(c)):
            if NFC.normalize_str(text) != unicodedata.normalize("NFC", text):
                unknown.add(c)
    for second, firsts in composition_partners().items():
        for first in firsts:
            text = chr(first) + chr(second)
            if NFC.normalize_str(text) != unicodedata.normalize("NFC", text):
                unknown.add(second)
    return unknown


def ranges(values):
    """Neighbours of the same value in `values` (code point -> value) as (first, last, value)."""
    found = []
    for c in sorted(values):
        if found and found[-1][1] == c - 1 and found[-1][2] == values[c]:
            found[-1][1] = c
        else:
            found.append([c, c, values[c]])
    return found


def rows(cells):
    lines, line = [], "   "
    for cell in cells:
        if len(line) + len(cell) + 1 > 100:
            lines.append(line)
            line = "   "
        line += " " + cell
    return "\n".join(lines + [line])


def main():
    assert unicodedata.unidata_version == "14.0.0", "run this with Python 3.11"
    new = rows(f'{{0x{a:X}, 0x{b:X}, "{v}"}},' for a, b, v in ranges(newer()))
    unknown = rows(f"{{0x{a:X}, 0x{b:X}}}," for a, b, _ in ranges({c: 0 for c in nfc_unknown()}))
    with open(sys.argv[1], "w", encoding="ascii") as out:
        out.write(f"""// Made by tools/golden/unicode_tables.py; not to be edited.
#include "dataloader/bpe/unicode.h"

namespace omni::dataloader {{
namespace {{

constexpr NewerRange kNewer[] = {{
{new}
}};

constexpr CodePointRange kNfcUnknown[] = {{
{unknown}
}};

}}  // namespace

absl::Span<const NewerRange> NewerThanUnicode14() {{ return kNewer; }}
absl::Span<const CodePointRange> UnknownToReferenceNfc() {{ return kNfcUnknown; }}

}}  // namespace omni::dataloader
""")


if __name__ == "__main__":
    main()
