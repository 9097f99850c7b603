"""Writes Sources/GyreTokenizers/Unicode/UnicodeData.swift: character classes and normalisation data
exactly as the public `tokenizers` library (and the regular-expression engines inside it) sees them.
Every set is found by asking the library about every scalar, so the two agree by construction.

    python Scripts/goldens/unicode_tables.py Sources/GyreTokenizers/Unicode/UnicodeData.swift
"""
import sys, textwrap, unicodedata
from tokenizers import Regex, pre_tokenizers as P, normalizers as N

ALL = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
TEXT = "".join(map(chr, ALL))
# The order is the bit number of the class masks in ScalarClass.swift.
CATEGORIES = "Cn Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Cc Cf Co Cs".split()
SCRIPTS = "Han Hiragana Katakana Hangul Latin Greek Cyrillic Arabic Hebrew Thai Devanagari Bopomofo Common".split()


def probe(pattern):
    pieces = P.Split(Regex(pattern), "removed", invert=True).pre_tokenize_str(TEXT)
    return {ALL[i] for _, (a, b) in pieces for i in range(a, b)}


def runs(scalars):
    """Sorted [start, length] runs of a set."""
    out = []
    for c in sorted(scalars):
        if out and out[-1][0] + out[-1][1] == c:
            out[-1][1] += 1
        else:
            out.append([c, 1])
    return out


def encode_set(scalars):
    previous, parts = 0, []
    for start, length in runs(scalars):
        parts.append(f"{start - previous:x}" + (f"+{length:x}" if length > 1 else ""))
        previous = start + length
    return ",".join(parts)


def literal(name, comment, text):
    body = "\n".join("    " + line for line in textwrap.wrap(text, 180, break_on_hyphens=False) or [""])
    return f'  /// {comment}\n  static let {name}: StaticString = """\n{body}\n    """\n'


category = {}
for index, name in enumerate(CATEGORIES):
    if name not in ("Cs", "Cn"):
        for c in probe(r"\p{%s}+" % name):
            category[c] = index
category_runs, start = [], 0
letter = lambda v: chr(65 + v) if v < 26 else chr(ord("g") + v - 26)
value = lambda c: 29 if 0xD800 <= c < 0xE000 else category.get(c, 0)
for c in range(1, 0x110001):
    if c == 0x110000 or value(c) != value(start):
        category_runs.append(letter(value(start)) + (f"{c - start:x}" if c - start > 1 else ""))
        start = c

in_category = lambda names: {c for c in ALL if CATEGORIES[category.get(c, 0)] in names.split()}
around = "".join("a" + chr(c) + "a" for c in ALL)
marks = in_category("Mn Mc Me")
word = in_category("Lu Ll Lt Lm Lo Mn Mc Me Nd Nl Pc")
library_word = {ord(s[1]) for s, (a, b) in P.Whitespace().pre_tokenize_str("".join("a" + chr(c) + "a " for c in ALL)) if b - a == 3}
kept = {i for _, (a, b) in P.Punctuation("removed").pre_tokenize_str(around) for i in range(a, b)}
punctuation = {ALL[i // 3] for i in range(1, len(around), 3) if i not in kept}
numeric = {ALL[a // 3] for _, (a, b) in P.Digits(True).pre_tokenize_str(around) if b - a == 1 and a % 3 == 1}
removed_by = lambda n: {c for c in ALL if n.normalize_str("a" + chr(c) + "b") == "ab"}
symbols = {ord(c) for c in "$+<=>^`|~"}

sets = [
    ("wordDifference", "Scalars where `\\w` of the pattern engine differs from L, M, Nd, Nl, Pc.", probe(r"\w+") ^ word),
    ("libraryWordDifference", "Scalars where `\\w` of the `Whitespace` pre-tokenizer differs from L, M, Nd, Nl, Pc.", library_word ^ word),
    ("punctuationDifference", "Scalars where the `Punctuation` pre-tokenizer differs from P and ASCII punctuation.", punctuation ^ (in_category("Pc Pd Ps Pe Pi Pf Po") | symbols)),
    ("numericDifference", "Scalars where the `Digits` pre-tokenizer differs from N.", numeric ^ in_category("Nd Nl No")),
    ("accentDifference", "Scalars where `StripAccents` differs from M.", removed_by(N.StripAccents()) ^ marks),
    ("bertControlDifference", "Scalars where the clean-up of `BertNormalizer` differs from Cc, Cf, Co.", removed_by(N.BertNormalizer(True, False, False, False)) ^ in_category("Cc Cf Co")),
    ("bertAccentDifference", "Scalars where accent stripping of `BertNormalizer` differs from Mn.",
     {c for c in ALL if N.BertNormalizer(False, False, True, False).normalize_str("a" + chr(c) + "b") == "ab"} ^ in_category("Mn")),
]

nfd, nfc, nfkd = N.NFD(), N.NFC(), N.NFKD()
canonical, compatibility, previous_c, previous_k = [], [], 0, 0
for c in ALL:
    if 0xAC00 <= c < 0xD7A4:
        continue
    full, compat = nfd.normalize_str(chr(c)), nfkd.normalize_str(chr(c))
    if full != chr(c):
        step = unicodedata.decomposition(chr(c)).split()
        assert step and not step[0].startswith("<"), hex(c)
        excluded = "" if nfc.normalize_str(full) == chr(c) else "!"
        canonical.append(f"{c - previous_c:x}{excluded}=" + "+".join(x.lstrip("0").lower() for x in step))
        previous_c = c
    if compat != full:
        compatibility.append(f"{c - previous_k:x}=" + "+".join(f"{ord(x):x}" for x in compat))
        previous_k = c

classes = {}
for c in ALL:
    ccc = unicodedata.combining(chr(c))
    if ccc and nfd.normalize_str("a" + chr(c) + "\u0334") == "a\u0334" + chr(c) or ccc == 1:
        classes.setdefault(ccc, set()).add(c)

lower = []
previous = 0
for c in ALL:
    mapped = N.Lowercase().normalize_str(chr(c))
    if mapped != chr(c):
        lower.append(f"{c - previous:x}=" + "+".join(f"{ord(x):x}" for x in mapped))
        previous = c

parts = [
    "// Generated by Scripts/goldens/unicode_tables.py from the public `tokenizers` library; not edited by hand.\n",
    "/// Character data as text: hexadecimal numbers, sets as `gap+length` runs, maps as `gap=targets`.",
    "enum UnicodeData {",
    literal("categories", "General category of every scalar: a letter (A to Z, then g to j, in the order of `ScalarClass`) and a run length.", "".join(category_runs)),
]
parts += [literal(n, d, encode_set(s)) for n, d, s in sets]
parts += [
    literal("canonical", "Canonical decompositions, one step; `!` marks those that are never composed.", ",".join(canonical)),
    literal("compatibility", "Full compatibility decompositions where they differ from the canonical ones.", ",".join(compatibility)),
    literal("combiningClasses", "Canonical combining classes: class, then its set.",
            ";".join(f"{k:x}:{encode_set(v)}" for k, v in sorted(classes.items()))),
    literal("lowercase", "Lower-case mappings, scalar by scalar.", ",".join(lower)),
    literal("scripts", "Scripts: name, then its set.", ";".join(f"{s}:{encode_set(probe(chr(92) + 'p{%s}+' % s))}" for s in SCRIPTS)),
]
with open(sys.argv[1], "w") as f:
    f.write("\n".join(parts[:3]) + "\n" + "\n".join(parts[3:]) + "}\n")
