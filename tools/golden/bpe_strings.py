"""Seeded strings that a tokenizer may stumble over; tools/golden/bpe.py uses them."""

import random
import unicodedata

# A sentence or two in each of many scripts: for training, and taken apart for testing.
PHRASES = [
    "The quick brown fox jumps over the lazy dog, didn't it? We'll see; they've said I'm late.",
    "Voix ambiguë d'un cœur qui, au zéphyr, préfère les jattes de kiwis. À bientôt !",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich, 42 Straßen weit.",
    "Pchnąć w tę łódź jeża lub ośm skrzyń fig; příliš žluťoučký kůň úpěl ďábelské ódy.",
    "El pingüino Wenceslao hizo kilómetros bajo exhaustiva lluvia. ¿Qué? ¡Mañana!",
    "Tiếng Việt có dấu: một buổi sáng đẹp trời, những người bạn gặp nhau ở Hà Nội.",
    "Съешь же ещё этих мягких французских булок, да выпей чаю. Щастя, їжак, ґанок.",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία. Ὦ ξεῖν’, ἀγγέλλειν Λακεδαιμονίοις.",
    "Բարեւ աշխարհ, ինչպե՞ս ես։ Հայերեն այբուբեն։",
    "ქართული ენა: ბავშვი მიდის სკოლაში და წიგნს კითხულობს.",
    "עברית: הילד הולך לבית הספר וקורא סֵפֶר. שָׁלוֹם עוֹלָם!",
    "العربية: يذهب الولد إلى المدرسة ويقرأ كِتَابًا. ١٢٣٤٥ مرحبا بالعالم؟",
    "فارسی: کتاب‌ها را می‌خوانم؛ ۱۲۳۴۵ روز گذشته است. اُردو: یہ ایک جملہ ہے۔",
    "हिन्दी: बच्चा विद्यालय जाता है और पुस्तक पढ़ता है। १२३४५ क़लम ज़रूर।",
    "বাংলা: ছেলেটি বিদ্যালয়ে যায় এবং বই পড়ে। ১২৩৪৫ কো কৌ",
    "ਪੰਜਾਬੀ: ਬੱਚਾ ਸਕੂਲ ਜਾਂਦਾ ਹੈ। ਗੁਰਮੁਖੀ ੧੨੩ ਸ਼ੇਰ",
    "ગુજરાતી: બાળક શાળાએ જાય છે અને પુસ્તક વાંચે છે. ૧૨૩",
    "தமிழ்: குழந்தை பள்ளிக்குச் செல்கிறது. கொ கோ கௌ ௧௨௩",
    "తెలుగు: పిల్లవాడు బడికి వెళ్తాడు. ౧౨౩ కై",
    "ಕನ್ನಡ: ಮಗು ಶಾಲೆಗೆ ಹೋಗುತ್ತದೆ. ೧೨೩ ಕೋ ಕೊ",
    "മലയാളം: കുട്ടി സ്കൂളിൽ പോകുന്നു. ൧൨൩ കൊ കോ",
    "සිංහල: ළමයා පාසලට යයි. කෝ කො ෆ",
    "ไทย: เด็กไปโรงเรียนและอ่านหนังสือ ๑๒๓๔ น้ำ",
    "ລາວ: ເດັກໄປໂຮງຮຽນ ແລະ ອ່ານປຶ້ມ ໑໒໓",
    "བོད་ཡིག: ཕྲུ་གུ་སློབ་གྲྭར་འགྲོ་གི་འདུག། ༡༢༣",
    "မြန်မာ: ကလေးသည် ကျောင်းသို့ သွားသည်။ ၁၂၃",
    "ភាសាខ្មែរ: ក្មេងទៅសាលារៀន។ ១២៣",
    "አማርኛ: ልጁ ወደ ትምህርት ቤት ይሄዳል። ፩፪፫",
    "ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ, ᐃᓄᒃᑎᑐᑦ ᐊᓪᓚᒍᓯᖅ, ᚠᚢᚦᚨᚱᚲ ᛫ ᚛ᚑᚌᚐᚋ᚜",
    "ᠮᠣᠩᠭᠣᠯ ᠬᠡᠯᠡ᠎ᠡ, ꦧꦱꦗꦮ, ᮘᮞᮥᮔ᮪ᮓ, ᬩᬮᬶ, ꯃꯩꯇꯩ",
    "中文：孩子去学校读书。我们在北京，今天是２０２４年１２月３１日，温度－５℃。",
    "繁體中文：孩子去學校讀書，㐀㐁𠀀𠀁𪜀 都是漢字。〇一二三",
    "日本語：子供は学校へ行って本を読みます。カタカナ、ひらがな、ﾊﾝｶｸ、が・ぎ・ぐ、㍿①",
    "한국어: 아이가 학교에 가서 책을 읽는다. 각 힣 ㅋㅋㅋ",
    "𝔐𝔞𝔱𝔥: ∀x∈ℝ, ∃n∈ℕ: n² > x ⇒ ∑ᵢ αᵢ ≠ ∞ ± ½ ⅷ Ⅻ x₁ ⓐ Ⓩ 🅰",
    "𐎀𐎁𐎂 𐤀𐤁𐤂 𒀀𒀁𒀂 𓀀𓀁𓀂 𐀀𐀁 𐌀𐌁 𝒜𝒷 𞤀𞤁 𐐀𐐨",
]
WORDS = [word for phrase in PHRASES for word in phrase.split()]
CODE = """
def main(argv: list[str]) -> int:
    for i, x in enumerate(argv[1:]):  # count them
        if x != '' and not x.startswith("--"):
            print(f"{i:>3}: {x!r}\\t{len(x) * 2}")
    return 0
#include <vector>
template <typename T> std::vector<T> Map(const std::vector<T>& in, T (*f)(T)) {
  std::vector<T> out; out.reserve(in.size());
  for (auto&& v : in) { out.push_back(f(v)); }
  return out;  // O(n)
}
SELECT u.id, COUNT(*) AS n FROM users u LEFT JOIN orders o ON o.user_id = u.id GROUP BY 1;
{"messages": [{"role": "user", "content": "What's 2+2?"}], "temperature": 0.7}
<div class="row"><a href="https://example.org/a?b=c&d=%20e">link</a></div>
fn main() { let s: &'static str = "it's"; println!("{}", s.len()); }
x = (a || b) && !c ? d[3] ^= 0xFF : ~e >>> 2; y **= 1e-5; z //= 3
\\frac{\\partial f}{\\partial x_{1}} = \\sum_{i=1}^{N} w_i^2
""".strip("\n").split("\n")
SPACES = ["\t", "\n", "\x0b", "\x0c", "\r", "\r\n", "\x1c", "\x1f", " ", "\x85", "\u00a0", "\u1680",
          "\u180e", "\u2000", "\u2003", "\u2009", "\u200a", "\u200b", "\u200c", "\u200d", "\u2028",
          "\u2029", "\u202f", "\u205f", "\u2060", "\u3000", "\ufeff", "\u00ad"]
EMOJI = ["😀", "😂", "❤️", "❤", "👍", "👍🏽", "👩‍💻", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "🇩🇪", "🇯🇵", "🇺", "1️⃣", "#️⃣", "🧑🏿‍🚀", "✨", "☕",
         "🫠", "🫨", "🛜", "🏽", "‍", "️", "⌚", "™️", "㊗️", "🤷🏻‍♀️"]
DIGITS = ["0", "1", "7", "42", "007", "1234567890", "3.14", "1,000", "٣", "१२", "๔", "²", "½", "Ⅷ", "〇", "①", "𝟗", "５", "፩", "௰",
          "𑽐", "𞥐", "፼"]
CONTRACTIONS = ["'s", "'S", "'ſ", "'t", "'T", "'re", "'RE", "'Re", "'ve", "'m", "'M", "'ll", "'LL",
                "'lL", "'d", "'D", "’s", "’ll", "''s", "'x", "'", "'K", "s'", "'ß", "'l", "'r"]
MARKS = [chr(c) for c in [0x300, 0x301, 0x302, 0x303, 0x308, 0x30A, 0x315, 0x31B, 0x323, 0x327,
                          0x328, 0x338, 0x345, 0x34F, 0x360, 0x5B0, 0x5B4, 0x64B, 0x651, 0x93C,
                          0x94D, 0x9BE, 0xBBE, 0xDCF, 0xE38, 0x1161, 0x11A8, 0x3099, 0x309A, 0x7FD,
                          0x8CA, 0xC3C, 0x1AC1, 0x1DF6, 0x11930, 0x1133B, 0x1E130, 0x1E2EC, 0x1E08F,
                          0x897, 0x11F42, 0x1D165, 0x20D0, 0xFE0F]]
BASES = list("aeiounscqAEIOUZ<=1 ") + ["ß", "ơ", "ư", "α", "ω", "И", "и", "क", "ন", "ே", "க", "が", "か", "ハ",
                                       "ᄀ", "가", "각", "ා", "ෙ", "𑤵", "𑄱", "\u212b", "\u2126", "\u0340", "\u0958", "豈",
                                       "\ufb1d", "\U0002f800", "中", "\u1100\u1161"]
NEWER = [0x1C89, 0x1C8A, 0xA7CB, 0xA7CD, 0xA7DA, 0x10D40, 0x10D4A, 0x10D6E, 0x11F04, 0x11F50, 0x1D2C0,
         0x1E030, 0x1E08F, 0x1E4D0, 0x1E4F0, 0x1E5D0, 0x2EBF0, 0x2EE5D, 0x31350, 0x323AF, 0x2FFC,
         0x31EF, 0x1CC00, 0x1CCF0, 0x16100, 0x16D40, 0x18CFF, 0x13439, 0x1B132, 0x105C0]


def anywhere(rng):
    """Any code point, small ones more often."""
    while True:
        c = rng.randrange(rng.choice([0x80, 0x300, 0x3000, 0x10000, 0x20000, 0x110000]))
        if not 0xD800 <= c < 0xE000:
            return chr(c)


def spell(rng, specials):
    """A special token, or nearly one."""
    token = rng.choice(specials)
    kind = rng.randrange(8)
    if kind == 0:
        return token[: rng.randrange(1, len(token) + 1)]
    if kind == 1:
        return token[rng.randrange(len(token)):]
    if kind == 2:
        return token.upper()
    if kind == 3:
        at = rng.randrange(len(token))
        return token[:at] + rng.choice([" ", "\n", "x", rng.choice(specials)]) + token[at:]
    return token


def strings(count, specials, seed=20261125):
    rng = random.Random(seed)
    joiners = ["", " ", " ", "  ", "\n", ", ", ". ", "-", "_", "/"]

    def joined(pieces, low=1, high=6):
        text = ""
        for _ in range(rng.randint(low, high)):
            text += rng.choice(pieces) + rng.choice(joiners)
        return text if rng.random() < 0.5 else text.rstrip(" ")

    def code():
        line = rng.choice(CODE)
        if rng.random() < 0.5:
            at = rng.randrange(len(line))
            line = line[at: at + rng.randint(3, 40)]
        return " " * rng.choice([0, 1, 2, 4, 7]) + "\t" * rng.choice([0, 0, 1, 2]) + line + \
            rng.choice(["", "\n", "\r\n", "\n\n", "  \n\t"])

    def spaces():
        text = ""
        for _ in range(rng.randint(1, 5)):
            text += rng.choice(["", rng.choice(WORDS), rng.choice(["a", "1", "!", "\u4e2d"])])
            text += "".join(rng.choice(SPACES) for _ in range(rng.randint(1, 4)))
        return text

    def marks():
        text = ""
        for _ in range(rng.randint(1, 4)):
            text += rng.choice(BASES) + "".join(rng.choice(MARKS) for _ in range(rng.randint(0, 4)))
        return text

    def decomposed():
        form = rng.choice(["NFD", "NFKD", "NFC"])
        return unicodedata.normalize(form, joined(WORDS))

    def mixed():
        pools = [WORDS, WORDS, SPACES, EMOJI, DIGITS, CONTRACTIONS, MARKS, CODE[0].split(), ["!", "?!", "...", "—", "„", "。"]]
        return "".join(rng.choice(rng.choice(pools)) for _ in range(rng.randint(1, 8)))

    def with_specials():
        text = ""
        for _ in range(rng.randint(1, 4)):
            text += rng.choice(["", " ", "\n", "  ", "e\u0301", "x", "\u3000", rng.choice(WORDS)])
            text += spell(rng, specials)
            text += rng.choice(["", "", " ", "\n", "\u0301", "y", "user\n", rng.choice(WORDS)])
        return text

    makers = [(code, 3), (lambda: joined(WORDS), 5), (lambda: joined(EMOJI), 1), (decomposed, 2),
              (marks, 2), (spaces, 3), (lambda: joined(DIGITS), 1), (with_specials, 4),
              (lambda: "".join(rng.choice(WORDS) + rng.choice(CONTRACTIONS) + rng.choice(["", " ", "s", "\n"])
                               for _ in range(rng.randint(1, 3))), 1),
              (lambda: "".join(anywhere(rng) for _ in range(rng.randint(1, 8))), 3),
              (lambda: "".join(chr(rng.randrange(128)) for _ in range(rng.randint(1, 24))), 2),
              (lambda: "".join(chr(rng.choice(NEWER)) + rng.choice(["", "a", " ", "1", "\u0301"])
                               for _ in range(rng.randint(1, 4))), 1),
              (mixed, 4)]
    wheel = [make for make, weight in makers for _ in range(weight)]
    found = ["", " ", "\n", "\0", "a", "\u0301", "\ufffd", "\U0010ffff"]
    # Long ones.
    found += ["a" * 3000, "ab" * 700, " " * 1000, "\n" * 777, " \n" * 300, "\u3000" * 300,
              "漢字" * 400, "1" * 999, "e\u0301" * 300, "a" + "\u0301\u0323" * 200, "!" * 500,
              "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(2000)),
              "".join(rng.choice("theandingofsto") for _ in range(4000)),
              "".join(rng.choice(specials) for _ in range(50)), "👨‍👩‍👧‍👦" * 40,
              " " * 500 + "x", "x" + " " * 500, "\t" * 200 + "\r\n" * 50 + "y", "'s" * 200]
    found += PHRASES + CODE + specials
    seen = set(found)
    while len(found) < count:
        text = rng.choice(wheel)()
        if text not in seen:
            seen.add(text)
            found.append(text)
    return found
