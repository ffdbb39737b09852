"""Chinese texts are normalised as by cn_tn. Expected values: outputs of Qwen2-Audio's cn_tn.py (595360e)."""

from __future__ import annotations

import pytest

from auris.metrics.chinese import normalize_chinese, spell_value

KINDS = {
    "measure words": {
        "250种": "两百五十种",
        "10086个": "一万零八十六个",
        "22222个": "两万两千两百二十二个",
        "第2名": "第二名",
    },
    "money": {
        "8500元": "八千五百元",
        "200美元": "两百美元",
        "8500美元": "八五零零美元",
        "12块5": "十二块五",
        "3万2": "三万二",
    },
    "signs of currencies": {"￥88": "￥八十八", "$12.50": "十二点五零"},
    "full-width digits": {"１２３路": "一百二十三路", "１０５个": "一百零十五个", "30％": "百分之三十"},
    "decimals, percentages, fractions": {
        "3.05": "三点零五",
        "00.5": "零点五",
        "25.5%": "百分之二十五点五",
        "1/2": "二分之一",
    },
    "dates": {
        "2023年5月6日": "二零二三年五月六日",
        "98年12月": "九八年十二月",
        "1500年": "一千五百年",
        "5月20号": "五月二十号",
    },
    "times": {"3:30": "三三十", "12:05": "十二零五"},
    "telephones": {
        "+8613912345678": "八六一三九一二三四五六七八",
        "010-62781234": "零一零六二七八一二三四",
        "62781234": "六二七八一二三四",
    },
    "ranges and signs": {"12-15": "十二十五", "-5度": "五度", "+3": "三"},
    "leading zeros": {"007": "零七", "05": "零五", "00": ""},
    "four digits or more": {"1234": "一二三四", "200000": "二零零零零零", "2.5万": "二点五万", "1,000": "一"},
    "Latin letters": {"5G": "五g", "MP3": "mp三", "B2B": "b2b", "ＡＢＣ": "ａｂｃ"},
    "punctuation": {"(笑)你好……": "笑你好", "•，好": "好", "好•": "好•"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_normalised_as_by_the_official_script(kind: str) -> None:
    assert {text: normalize_chinese(text).replace(" ", "") for text in KINDS[kind]} == KINDS[kind]


def test_a_replacement_hits_the_first_occurrence_as_in_the_official_script() -> None:
    """The rule for money matches the second 2000, but its text occurs before."""
    assert normalize_chinese("62000元和2000元") == "六万两千元和两千元"
    assert normalize_chinese("编号2000个，共2000") == "编号两千个 共二零零零"
    assert normalize_chinese("编号2000，共2000个") == "编号两千 共二零零零个"


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        ("2", "二"),
        ("12", "十二"),
        ("110", "一百一十"),
        ("200200", "二十万零二百"),
        ("100200", "十万零二百"),
        ("22020", "两万两千零二十"),
        ("2" + 8 * "0", "两亿"),
    ],
)
def test_values_are_spelled_with_liang_before_units_except_ten(number: str, expected: str) -> None:
    assert spell_value(number) == expected
