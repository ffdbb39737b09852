"""Tests of the grammar: hand-written examples in every language, and the assignment of sentences to splits."""

from __future__ import annotations

import numpy as np
import pytest

from auris.corpus.grammar import (
    KEYWORDS,
    LANGUAGES,
    MAX_WORDS,
    SPLITS,
    Meaning,
    assign_split,
    draw_keyword_phrase,
    draw_meaning,
    render,
    split_words,
)
from support.corpus_words import cover, vocabulary


@pytest.mark.parametrize(
    ("meaning", "sentences"),
    [
        (
            Meaning("queen", "finds", "small", "apple", "new"),
            {
                "en": "the small queen finds the new apple",
                "zh": "小女王找到新苹果",
                "de": "die kleine königin findet den neuen apfel",
                "es": "la reina pequeña encuentra la manzana nueva",
                "fr": "la petite reine trouve la nouvelle pomme",
                "it": "la regina piccola trova la mela nuova",
                "ja": "ちいさい じょおうわ あたらしい りんごを みつけます",
                "ko": "작은 여왕은 새로운 사과를 찾습니다",
                "yue": "細女王搵到新蘋果",
            },
        ),
        (
            Meaning("horse", "sings", "white", place="in the kitchen", adverb="tonight"),
            {
                "en": "the white horse sings in the kitchen tonight",
                "zh": "白马今晚在厨房里唱歌",
                "de": "das weiße pferd singt heute abend in der küche",
                "es": "el caballo blanco canta en la cocina esta noche",
                "fr": "le cheval blanc chante dans la cuisine ce soir",
                "it": "il cavallo bianco canta nella cucina questa sera",
                "ja": "しろい うまわ こんばん だいどころで うたいます",
                "ko": "하얀 말은 오늘밤 부엌에서 노래합니다",
                "yue": "白馬今晚喺廚房唱歌",
            },
        ),
        (
            Meaning("boy", "buys", object="bread", object_adjective="black", adverb="often"),
            {
                "en": "the boy buys the black bread often",
                "zh": "男孩经常买黑面包",
                "de": "der junge kauft oft das schwarze brot",
                "es": "el niño compra el pan negro a menudo",
                "fr": "le garçon achète le pain noir souvent",
                "it": "il ragazzo compra il pane nero spesso",
                "ja": "おとこのこわ よく くろい パンを かいます",
                "ko": "소년은 자주 검은 빵을 삽니다",
                "yue": "男仔成日買黑麵包",
            },
        ),
    ],
)
def test_rendered_sentences_equal_sentences_written_by_hand(meaning: Meaning, sentences: dict[str, str]) -> None:
    assert {language: render(meaning, language) for language in LANGUAGES} == sentences


def test_different_meanings_have_different_sentences_in_every_language() -> None:
    rng = np.random.default_rng(0)
    meanings = {draw_meaning(rng, split) for split in SPLITS for _ in range(1000)} | set(cover())
    for language in LANGUAGES:
        assert len({render(meaning, language) for meaning in meanings}) == len(meanings), language


def test_drawn_sentences_are_short_and_belong_to_their_split() -> None:
    rng = np.random.default_rng(1)
    meanings_by_split = {split: [draw_meaning(rng, split) for _ in range(300)] for split in SPLITS}
    for split, meanings in meanings_by_split.items():
        assert all(assign_split(render(meaning, "en")) == split for meaning in meanings)
        assert {len(render(meaning, "en").split()) for meaning in meanings} <= set(range(3, MAX_WORDS + 1))
    assert not set(meanings_by_split["train"]) & set(meanings_by_split["test"])
    assert len(set(meanings_by_split["train"])) > 250


def test_a_keyword_phrase_contains_its_keyword_and_no_other() -> None:
    rng = np.random.default_rng(2)
    for keyword in KEYWORDS:
        for split in SPLITS:
            phrase = draw_keyword_phrase(rng, split, keyword)
            assert assign_split(phrase) == split
            assert [word for word in phrase.split() if word in KEYWORDS] == [keyword]


def test_the_vocabulary_contains_every_drawn_word_and_at_least_sixty_english_words() -> None:
    rng = np.random.default_rng(3)
    for language in LANGUAGES:
        words = vocabulary(language)
        for _ in range(300):
            assert set(split_words(render(draw_meaning(rng, "test"), language), language)) <= words
    assert {"says", *KEYWORDS} <= vocabulary("en")
    assert len(vocabulary("en")) >= 60


def test_sentences_are_lower_case_without_punctuation() -> None:
    for language in LANGUAGES:
        for meaning in cover():
            sentence = render(meaning, language)
            assert sentence == sentence.lower()
            # Python counts marks such as the Japanese long vowel (ー) as letters.
            assert all(character.isalpha() or character == " " for character in sentence), sentence
