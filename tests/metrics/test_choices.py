"""Responses to multiple-choice questions: which option they name, or that they name none or several."""

from __future__ import annotations

from string import ascii_uppercase

import pytest

from auris.metrics.choices import count_choice, parse_option

OPTIONS = ["happy", "sad", "angry", "calm"]


def letters(replies: list[str], options: list[str] = OPTIONS) -> dict[str, str | None]:
    """Return the letter of the option that each reply names."""
    indices = {reply: parse_option(reply, options) for reply in replies}
    return {reply: None if index is None else ascii_uppercase[index] for reply, index in indices.items()}


@pytest.mark.parametrize(
    ("letter", "replies"),
    [
        (
            "A",
            [
                "A.",
                "(a)",
                "A: happy",
                "Only A",
                "Option A",
                "A is the answer",
                "A seems most likely",
                "It sounds like A",
            ],
        ),
        (
            "B",
            ["B", " b.", "b)", "**B**", '"B"', "B because it is slow", "I think B", "[[B]]", "B\nBecause it is slow"],
        ),
        ("B", ["<think>A or C? Not D.</think>B", "<think>\nA.\n</think>\n\nThe answer is B.", "I prefer B over A."]),
        (
            "B",
            ["I think it's B.", "I would go with B since it's slow", "The answer is: B, I think", "the answer is b."],
        ),
        (
            "C",
            [
                "(C)",
                "Answer: C",
                "The correct choice is (C).",
                "C) angry because of D.",
                "\\boxed{C}",
                "<answer>C</answer>",
                "I choose c",
            ],
        ),
        ("D", ["[D] calm", "Option D", "Correct option: D", "Final answer\n\nD", "I'm not sure, D"]),
    ],
)
def test_a_letter_is_read(letter: str, replies: list[str]) -> None:
    assert letters(replies) == dict.fromkeys(replies, letter)


@pytest.mark.parametrize(
    "replies",
    [
        ["A or B", "A and C", "A, B", "A/B", "A & B", "Either B or C", "both A and B", "It is B or maybe C"],
        ["The answer could be A or B", "The answer is A. Or the answer is B.", "It is between A and C"],
        ["A, B, C, D", "A B C D", "A. B. C. D.", "A\nB\nC\nD", "(A) (B) (C) (D)", "The options are A, B, C and D"],
        ["A. happy\nB. sad\nC. angry\nD. calm", "A) happy B) sad", "Option A: happy. Option B: sad.", "happy or sad"],
        ["A和B", "A、B都有可能", "选A或B", "A 或者 B"],
        ["(B)(C)", "B (or C)", "B? C?", "B or possibly C", "Possibly B, possibly C", "B as well as C"],
        ["A: no tears. B: yes. C: no.", "A. happy - unlikely\nB. sad - likely\nC. angry - no"],  # comments on options
    ],
)
def test_several_letters_or_texts_are_unparsed(replies: list[str]) -> None:
    assert letters(replies) == dict.fromkeys(replies)


def test_denied_letters_and_texts_do_not_count() -> None:
    denied = ["not A", "Neither A nor B", "none of A, B, C, D", "The answer is not A", "It can't be A", "A is wrong"]
    denied += ["It is not happy", "neither happy nor sad", "The speaker does not sound sad", "A和B都不对"]
    assert letters(denied) == dict.fromkeys(denied)
    corrected = [
        "It isn't B, it's C",
        "not A but C",
        "C, not B",
        "C rather than A",
        "A and B are wrong, so C",
        "Not A. C",
    ]
    corrected += ["I don't hear a happy voice, it is angry", "not sad but angry", "排除A，选C", "答案不是A，是C"]
    assert letters(corrected) == dict.fromkeys(corrected, "C")


def test_a_stated_answer_outranks_other_mentions() -> None:
    replies = [
        "The answer is D. Explanation: option B is about sadness, (C) about anger.",
        "Answer: D\n\nExplanation: Option B mentions sadness.",
        "Music: none\nAnswer: D",
        "The correct option is (D) because A is wrong",
        "Options: A. happy B. sad C. angry D. calm. The answer is D.",
        "D) calm because of A.",
        "D, because B and C are wrong",
        "Between A and D, I pick D",
        "The answer is calm. A happy person would laugh.",
        "Definitely CALM!",
    ]
    assert letters(replies) == dict.fromkeys(replies, "D")


def test_a_letter_that_is_a_word_or_a_name_does_not_count() -> None:
    words = [
        "A dog barks",
        "The answer is A dog barking",
        "C major",
        "it is C major",
        "D's voice",
        "speaker(s)",
        "U.S.",
    ]
    words += ["Cannot tell", "AB", "XA", "Option 1", "None", "", "unhappy"]
    assert letters(words) == dict.fromkeys(words)
    assert parse_option(None, OPTIONS) is None
    sad = ["A sad voice can be heard", "The answer is a sad voice", "Answer: A sad person", "SAD!"]
    assert letters(sad) == dict.fromkeys(sad, "B")
    keys = ["C major", "A minor", "G major", "D major"]
    replies = {"The answer is C major.": "A", "It is A minor": "B", "The answer is C": "C", "D major": "D"}
    assert letters(list(replies), keys) == replies


def test_chinese_and_full_width_letters_are_read() -> None:
    replies = [
        "答案是B",
        "选B",
        "Ｂ",
        "（Ｂ）",
        "答案：Ｂ。",
        "我选择B，因为A不对",
        "选项B",
        "应该选B选项",
        "B是正确的",
        "B，因为声音低沉",
    ]
    assert letters(replies) == dict.fromkeys(replies, "B")


def test_a_letter_on_the_first_line_is_the_answer() -> None:
    replies = ["B\nThe voice is low.", "B\n\nExplanation:\nA. happy: not bright\nC. angry: no shouting"]
    assert letters(replies) == dict.fromkeys(replies, "B")


def test_texts_without_spaces_around_them_are_read() -> None:
    replies = {"说话人很悲伤": "B", "不是高兴而是悲伤": "B", "他很不高兴": None, "没有悲伤": None, "情绪是愤怒。": "C"}
    assert letters([*replies], ["高兴", "悲伤", "愤怒"]) == replies
    assert letters(["他很不高兴"], ["高兴", "不高兴"]) == {"他很不高兴": "B"}
    assert letters(["答案是sad"]) == {"答案是sad": "B"}
    single_characters = {"说话人是女性": None, "是": "A", "否": "B"}
    assert letters([*single_characters], ["是", "否"]) == single_characters


def test_a_number_is_not_a_part_of_another_number() -> None:
    replies = {"2.5 seconds": None, "0.10 seconds": None, "It lasts 5 seconds.": "A", "10 seconds, I think": "B"}
    assert letters([*replies], ["5 seconds", "10 seconds"]) == replies
    assert letters(["2.5", "2.", "2,5", "有2个人"], ["2", "3"]) == {"2.5": None, "2.": "A", "2,5": None, "有2个人": "A"}


def test_as_many_letters_are_read_as_there_are_options() -> None:
    words = [f"word{number}" for number in range(10)]
    replies = {
        "J": "J",
        "The answer is I.": "I",
        "I think F": "F",
        "(e)": "E",
        "I think it is word3": "D",
        "I, J": None,
    }
    assert letters([*replies, "K"], words) == {**replies, "K": None}
    beyond = ["E", "The answer is E. Option B is wrong"]
    assert letters(beyond) == dict.fromkeys(beyond)
    assert letters(["It is (D)"], ["jazz", "rock", "folk"]) == {"It is (D)": None}
    assert count_choice("choice", "F", "word5", words) == [1, 1]
    assert count_choice("choice_official", "D", "word5", words) == [0, 1]  # the script knows the letters A to D only


def test_texts_of_options_may_contain_each_other_or_a_denial() -> None:
    assert letters(["I hear a dog barking"], ["dog", "dog barking", "cat"]) == {"I hear a dog barking": "B"}
    assert letters(["The dog is not barking"], ["barking", "not barking"]) == {"The dog is not barking": "B"}
    assert letters(["No, it is not", "Yes."], ["yes", "no"]) == {"No, it is not": "B", "Yes.": "A"}
    assert letters(["The dog is not barking but it growls"], ["dog", "cat"]) == {
        "The dog is not barking but it growls": "A"
    }
    assert letters(["Symphony in D"], ["Symphony in D", "a waltz"]) == {"Symphony in D": "A"}
    assert letters([""], ["?", "!"]) == {"": None}
