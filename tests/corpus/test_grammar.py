"""The grammar: right in every language (by hand-written examples), and dealt to splits by meaning."""

from __future__ import annotations

import numpy as np
import pytest

from auris.corpus.grammar import (
    KEYWORDS,
    LANGUAGES,
    MAX_WORDS,
    SPLITS,
    Meaning,
    draw_keyword_phrase,
    draw_meaning,
    render,
    split_of,
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
def test_renders_grammatical_sentences(meaning: Meaning, sentences: dict[str, str]) -> None:
    assert {language: render(meaning, language) for language in LANGUAGES} == sentences


def test_translation_is_a_function_both_ways() -> None:
    rng = np.random.default_rng(0)
    meanings = {draw_meaning(rng, split) for split in SPLITS for _ in range(1000)} | set(cover())
    for language in LANGUAGES:
        assert len({render(meaning, language) for meaning in meanings}) == len(meanings), language


def test_drawn_sentences_are_short_and_belong_to_their_split() -> None:
    rng = np.random.default_rng(1)
    drawn = {split: [draw_meaning(rng, split) for _ in range(300)] for split in SPLITS}
    for split, meanings in drawn.items():
        assert all(split_of(render(meaning, "en")) == split for meaning in meanings)
        assert {len(render(meaning, "en").split()) for meaning in meanings} <= set(range(3, MAX_WORDS + 1))
    assert not set(drawn["train"]) & set(drawn["test"])
    assert len(set(drawn["train"])) > 250


def test_keyword_phrase_holds_its_keyword_and_no_other() -> None:
    rng = np.random.default_rng(2)
    for keyword in KEYWORDS:
        for split in SPLITS:
            phrase = draw_keyword_phrase(rng, split, keyword)
            assert split_of(phrase) == split
            assert [word for word in phrase.split() if word in KEYWORDS] == [keyword]


def test_vocabulary_holds_all_that_can_be_drawn_and_english_has_sixty_words() -> None:
    rng = np.random.default_rng(3)
    for language in LANGUAGES:
        known = vocabulary(language)
        for _ in range(300):
            assert set(split_words(render(draw_meaning(rng, "test"), language), language)) <= known
    assert {"says", *KEYWORDS} <= vocabulary("en")
    assert len(vocabulary("en")) >= 60


def test_text_is_lower_case_and_bare_of_punctuation() -> None:
    for language in LANGUAGES:
        for meaning in cover():
            sentence = render(meaning, language)
            assert sentence == sentence.lower()
            # Marks such as the Japanese long vowel (ー) are letters to Python; anything else must be a space.
            assert all(character.isalpha() or character == " " for character in sentence), sentence
