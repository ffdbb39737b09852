"""Normalisation of Chinese transcripts as by cn_tn, the normaliser of Qwen2-Audio's script eval_audio/evaluate_asr.py.

cn_tn is part of https://github.com/speechio/chinese_text_normalization (python/cn_tn.py, all options off) and is not on
any package index. This module has the same behaviour and no common code. Its faults are kept, because scores are
comparable only if both texts are spelled in the same way:

* A number of four or more digits is read digit by digit, unless a measure word or a unit of money from the lists below
  follows: 8500元 is 八千五百元, but 8500美元 is 八五零零美元.
* Signs and colons are punctuation: -5度 is 五度, and 3:30 is 三三十.
* A rule replaces the first occurrence of the text that it has matched, even if it has matched a later one.
* Full-width digits are read, but full-width letters and signs of currencies stay as they are.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Callable

_DIGITS = "零一二三四五六七八九"
# Names of the powers of ten that have a name, from the largest one to the smallest one.
_UNITS = [*zip(range(44, 4, -4), "载正涧沟穰秭垓京兆亿", strict=True), (4, "万"), (3, "千"), (2, "百"), (1, "十")]

_NUMBER = r"\d+(?:\.\d+)?"
_MONEY = "(?:千万|百万|[亿万千百元块角毛分])"
_MEASURE_WORDS = (
    "(?:[千微]克|千米|[丈世丘丝两个丸代令件伏位冬出刀分刻勺匹升单卮厘双叠口只合名周啖回场块坡堂堆墙壳壶夏夜天头季客家寸对寻尺尾层"
    "山岁岭常幢年座张忽户手扎打担挑捆撮支斗斛斤日旬时春曲更月本条杯板枝根桶棵毫江泡溪炮煲片瓶盆盏盒盘石砣碗碟秋秒程窠笼管箩箱篮簋粒"
    "纪线罐网罗群脚腔袋袭课贯贴跳身辆辈道里针钟钧钱钵铢铺锅锱阙队阵面页顶颗首])"
)

# Characters that become spaces. Other punctuation is removed only if a word consists of nothing else.
_PUNCTUATION = re.compile(
    f"[{re.escape(string.punctuation)}·–—‘’‛“”„‟…‧\u3001-\u3003\u3008-\u3011\u3014-\u301f〰〾〿﹏"
    "\uff01-\uff0d\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff64]"
)


def normalize_chinese(text: str) -> str:
    """Return a text with numbers spelled out, lower-case letters, and spaces in place of punctuation."""
    words = _PUNCTUATION.sub(" ", spell_numbers(text)).lower().split()
    return " ".join(word for word in words if not all(unicodedata.category(c).startswith("P") for c in word))


def spell_numbers(text: str) -> str:
    """Spell out all numbers of a text. The rules for dates, money and so on are applied one after another."""
    text = f"^{text.replace('％', '%')}$"  # rules that need a character before or after a number match at the ends too
    for pattern, spell in _RULES:
        for matched in pattern.findall(text):
            text = text.replace(matched, spell(matched), 1)
    text = re.sub("([a-zA-Z]+)二([a-zA-Z]+)", r"\g<1>2\2", text)  # B2B, P2P
    return text.lstrip("^").rstrip("$")


def spell_value(number: str) -> str:
    """Spell out the value of a number: `12.5` -> 十二点五. Before units other than 十, 2 is 两: `2200` -> 两千两百."""
    integer, _, decimals = number.partition(".")
    value = _spell_integer(integer) if len(integer) > 1 else spell_digits(integer)
    value = re.sub("(?<![零十])二(?=[^零一二三四五六七八九十])", "两", value)
    if decimals:
        value = f"{value or '零'}点{spell_digits(decimals)}"
    return value.removeprefix("一") if value.startswith("一十") else value


def spell_digits(number: str) -> str:
    """Spell out each digit of a number: `2023` -> 二零二三. Other characters are left out."""
    return "".join(_DIGITS[int(digit)] for digit in number if digit.isdecimal())


def _spell_integer(digits: str) -> str:
    """Spell out an integer. Zeros at its beginning are one 零 before a last digit, and nothing otherwise."""
    significant = digits.lstrip("0")
    if len(significant) < 2:
        return "零" * (0 < len(significant) < len(digits)) + spell_digits(significant)
    power, unit = next((power, unit) for power, unit in _UNITS if power < len(significant))
    return _spell_integer(digits[:-power]) + unit + _spell_integer(significant[-power:])


def _spell_date(date: str) -> str:
    return _spell_each(re.sub(r"^\d+(?=年)", lambda year: spell_digits(year[0]), date))


def _spell_each(text: str) -> str:
    """Spell out the value of each number of a text."""
    return re.sub(_NUMBER, lambda number: spell_value(number[0]), text)


def _spell_fraction(fraction: str) -> str:
    numerator, denominator = fraction.split("/")
    return f"{spell_value(denominator)}分之{spell_value(numerator)}"


# The rules in the order in which they are applied: what the pattern's group matches, and how it is spelled.
_RULES: list[tuple[re.Pattern[str], Callable[[str], str]]] = [
    (re.compile(r"\D+((?:(?:[089]\d|(?:19|20)\d\d)年)?(?:\d{1,2}月(?:\d{1,2}[日号])?)?)"), _spell_date),
    (re.compile(rf"\D+({_NUMBER}[多余几]?{_MONEY}(?:\d{_MONEY}?)?)"), _spell_each),
    (re.compile(r"\D((?:\+?86 ?)?1(?:[38]\d|5[0-35-9]|7[678]|9[89])\d{8})\D"), spell_digits),  # mobile telephones
    (re.compile(r"\D((?:0(?:10|2[1-3]|[3-9]\d\d)-?)?[1-9]\d{6,7})\D"), spell_digits),  # other telephones
    (re.compile(r"(\d+/\d+)"), _spell_fraction),
    (re.compile(rf"({_NUMBER}%)"), lambda percentage: f"百分之{spell_value(percentage[:-1])}"),
    (re.compile(rf"({_NUMBER})[多余几]?{_MEASURE_WORDS}"), spell_value),
    (re.compile(r"(\d{4,32})"), spell_digits),
    (re.compile(rf"({_NUMBER})"), spell_value),
]
