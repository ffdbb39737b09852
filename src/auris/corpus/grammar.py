"""A closed grammar whose sentences mean the same in nine languages, and the keyword phrases: what the corpus says.

A sentence is a choice of slots (`Meaning`); rendering it in a language is a function, so a translation is too.
Sentences are dealt to train, valid and test by their meaning, hence an unseen one is unseen in every language and task.

The slots were chosen to make agreement easy to get right: definite articles throughout, verbs in the third person
singular, nouns that need no elision in French and Italian, subjects in the nominative only and objects in the
accusative only. Chinese words are those that eSpeak reads alike one character at a time. Japanese is written in kana,
spaced by phrase, with the topic particle as it is pronounced (わ). Korean particles follow their noun's last sound.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from auris.errors import UserError

LANGUAGES = ("en", "zh", "de", "es", "fr", "it", "ja", "ko", "yue")
SPLITS = ("train", "valid", "test")
KEYWORDS = ("stop", "go", "up", "down", "left", "right", "yes", "no", "on", "off")

# How a word attaches to a sentence differs by language: German objects carry the accusative article; a French adjective
# marked with `+` stands before its noun; a Japanese verb brings its object's particle; places are whole phrases.
_SUBJECTS = """
    dog   | 狗   | der hund    | el perro   | le chien      | il cane     | いぬ
    cat   | 猫   | die katze   | el gato    | le chat       | il gatto    | ねこ
    mouse | 老鼠 | die maus    | el ratón   | la souris     | il topo     | ねずみ
    horse | 马   | das pferd   | el caballo | le cheval     | il cavallo  | うま
    cow   | 牛   | die kuh     | la vaca    | la vache      | la mucca    | うし
    wolf  | 狼   | der wolf    | el lobo    | le loup       | il lupo     | おおかみ
    fox   | 狐狸 | der fuchs   | el zorro   | le renard     | la volpe    | きつね
    frog  | 青蛙 | der frosch  | la rana    | la grenouille | la rana     | かえる
    boy   | 男孩 | der junge   | el niño    | le garçon     | il ragazzo  | おとこのこ
    girl  | 女孩 | das mädchen | la niña    | la fille      | la ragazza  | おんなのこ
    king  | 国王 | der könig   | el rey     | le roi        | il re       | おうさま
    queen | 女王 | die königin | la reina   | la reine      | la regina   | じょおう
"""
_OBJECTS = """
    apple  | 苹果 | den apfel     | la manzana  | la pomme   | la mela     | りんご
    bread  | 面包 | das brot      | el pan      | le pain    | il pane     | パン
    book   | 书   | das buch      | el libro    | le livre   | il libro    | ほん
    ball   | 球   | den ball      | la pelota   | le ballon  | la palla    | ボール
    hat    | 帽子 | den hut       | el sombrero | le chapeau | il cappello | ぼうし
    car    | 汽车 | das auto      | el coche    | la voiture | la macchina | くるま
    flower | 花   | die blume     | la flor     | la fleur   | il fiore    | はな
    table  | 桌子 | den tisch     | la mesa     | la table   | il tavolo   | つくえ
    box    | 盒子 | die schachtel | la caja     | la boîte   | la scatola  | はこ
    letter | 信   | den brief     | la carta    | la lettre  | la lettera  | てがみ
"""
_ADJECTIVES = """
    red    | 红     | rot     | rojo/roja             | rouge/rouge        | rosso/rossa       | あかい
    black  | 黑     | schwarz | negro/negra           | noir/noire         | nero/nera         | くろい
    white  | 白     | weiß    | blanco/blanca         | blanc/blanche      | bianco/bianca     | しろい
    green  | 绿     | grün    | verde/verde           | vert/verte         | verde/verde       | みどりの
    small  | 小     | klein   | pequeño/pequeña       | +petit/petite      | piccolo/piccola   | ちいさい
    big    | 大     | groß    | grande/grande         | +grand/grande      | grande/grande     | おおきい
    happy  | 快乐的 | fröhlich | feliz/feliz           | heureux/heureuse   | felice/felice     | うれしい
    hungry | 饥饿的 | hungrig | hambriento/hambrienta | affamé/affamée     | affamato/affamata | はらぺこの
    strong | 强壮的 | stark   | fuerte/fuerte         | fort/forte         | forte/forte       | つよい
    new    | 新     | neu     | nuevo/nueva           | +nouveau/nouvelle  | nuovo/nuova       | あたらしい
    heavy  | 重     | schwer  | pesado/pesada         | lourd/lourde       | pesante/pesante   | おもい
"""
_TRANSITIVE = """
    sees   | 看见 | sieht    | ve        | voit   | vede   | を みます
    finds  | 找到 | findet   | encuentra | trouve | trova  | を みつけます
    buys   | 买   | kauft    | compra    | achète | compra | を かいます
    takes  | 拿   | nimmt    | toma      | prend  | prende | を とります
    washes | 洗   | wäscht   | lava      | lave   | lava   | を あらいます
    pushes | 推   | schiebt  | empuja    | pousse | spinge | を おします
    wants  | 想要 | will     | quiere    | veut   | vuole  | を ほしがります
    brings | 带来 | bringt   | trae      | apporte | porta | を もってきます
"""
_INTRANSITIVE = """
    works  | 工作 | arbeitet | trabaja | travaille | lavora  | はたらきます
    waits  | 等待 | wartet   | espera  | attend    | aspetta | まちます
    sings  | 唱歌 | singt    | canta   | chante    | canta   | うたいます
    dances | 跳舞 | tanzt    | baila   | danse     | balla   | おどります
    plays  | 玩   | spielt   | juega   | joue      | gioca   | あそびます
    laughs | 笑   | lacht    | ríe     | rit       | ride    | わらいます
    runs   | 跑步 | rennt    | corre   | court     | corre   | はしります
"""
_PLACES = """
    in the garden  | 在花园里 | im garten     | en el jardín   | dans le jardin  | nel giardino  | にわで
    in the house   | 在房子里 | im haus       | en la casa     | dans la maison  | nella casa    | いえで
    in the kitchen | 在厨房里 | in der küche  | en la cocina   | dans la cuisine | nella cucina  | だいどころで
    in the forest  | 在森林里 | im wald       | en el bosque   | dans la forêt   | nel bosco     | もりで
    in the castle  | 在城堡里 | im schloss    | en el castillo | dans le château | nel castello  | おしろで
    in the park    | 在公园里 | im park       | en el parque   | dans le parc    | nel parco     | こうえんで
    in the city    | 在城市里 | in der stadt  | en la ciudad   | dans la ville   | nella città   | まちで
    in the village | 在村子里 | im dorf       | en el pueblo   | dans le village | nel villaggio | むらで
"""
_ADVERBS = """
    now     | 现在 | jetzt       | ahora      | maintenant | adesso      | いま
    tonight | 今晚 | heute abend | esta noche | ce soir    | questa sera | こんばん
    often   | 经常 | oft         | a menudo   | souvent    | spesso      | よく
"""
# Korean and Cantonese forms of all of these.
_KOREAN_AND_CANTONESE = """
    dog            | 개         | 狗
    cat            | 고양이     | 貓
    mouse          | 쥐         | 老鼠
    horse          | 말         | 馬
    cow            | 소         | 牛
    wolf           | 늑대       | 狼
    fox            | 여우       | 狐狸
    frog           | 개구리     | 青蛙
    boy            | 소년       | 男仔
    girl           | 소녀       | 女仔
    king           | 왕         | 國王
    queen          | 여왕       | 女王
    apple          | 사과       | 蘋果
    bread          | 빵         | 麵包
    book           | 책         | 書
    ball           | 공         | 波
    hat            | 모자       | 帽
    car            | 자동차     | 車
    flower         | 꽃         | 花
    table          | 탁자       | 枱
    box            | 상자       | 箱
    letter         | 편지       | 信
    red            | 빨간       | 紅
    black          | 검은       | 黑
    white          | 하얀       | 白
    green          | 초록색     | 綠
    small          | 작은       | 細
    big            | 큰         | 大
    happy          | 행복한     | 開心嘅
    hungry         | 배고픈     | 肚餓嘅
    strong         | 강한       | 強壯嘅
    new            | 새로운     | 新
    heavy          | 무거운     | 重
    sees           | 봅니다     | 見到
    finds          | 찾습니다   | 搵到
    buys           | 삽니다     | 買
    takes          | 가져갑니다 | 攞
    washes         | 씻습니다   | 洗
    pushes         | 밉니다     | 推
    wants          | 원합니다   | 想要
    brings         | 가져옵니다 | 帶嚟
    works          | 일합니다   | 做嘢
    waits          | 기다립니다 | 等
    sings          | 노래합니다 | 唱歌
    dances         | 춤춥니다   | 跳舞
    plays          | 놉니다     | 玩
    laughs         | 웃습니다   | 笑
    runs           | 달립니다   | 跑步
    in the garden  | 정원에서   | 喺花園
    in the house   | 집에서     | 喺屋企
    in the kitchen | 부엌에서   | 喺廚房
    in the forest  | 숲에서     | 喺森林
    in the castle  | 성에서     | 喺城堡
    in the park    | 공원에서   | 喺公園
    in the city    | 도시에서   | 喺城市
    in the village | 마을에서   | 喺村
    now            | 지금       | 而家
    tonight        | 오늘밤     | 今晚
    often          | 자주       | 成日
"""
_PEOPLE_AND_ANIMALS_ONLY = ("happy", "hungry", "strong")
_THINGS_ONLY = ("new", "heavy")
MAX_WORDS = 7  # of the English sentence: most clips stay under three seconds, so that a laptop can train on them

SHARES = {"train": 82, "valid": 8, "test": 10}  # of a hundred meanings


def _cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")] for line in table.strip().splitlines()]


_REST = {english: rest for english, *rest in _cells(_KOREAN_AND_CANTONESE)}


def _read(table: str) -> dict[str, dict[str, str]]:
    """Rows of a table above as {English: {language: form}}."""
    return {row[0]: dict(zip(LANGUAGES, row + _REST[row[0]], strict=True)) for row in _cells(table)}


SUBJECTS = _read(_SUBJECTS)
OBJECTS = _read(_OBJECTS)
ADJECTIVES = _read(_ADJECTIVES)
TRANSITIVE = _read(_TRANSITIVE)
INTRANSITIVE = _read(_INTRANSITIVE)
PLACES = _read(_PLACES)
ADVERBS = _read(_ADVERBS)
_SUBJECT_ADJECTIVES = tuple(word for word in ADJECTIVES if word not in _THINGS_ONLY)
_OBJECT_ADJECTIVES = tuple(word for word in ADJECTIVES if word not in _PEOPLE_AND_ANIMALS_ONLY)


@dataclass(frozen=True)
class Meaning:
    """One sentence's choice of slots, each named by its English word; None where the slot is empty.

    `object` is there exactly when `action` is a transitive verb; a `place` only with an intransitive one.
    """

    subject: str
    action: str
    adjective: str | None = None
    object: str | None = None
    object_adjective: str | None = None
    place: str | None = None
    adverb: str | None = None

    @property
    def split(self) -> str:
        """The split that owns this meaning, in every language and every task."""
        return split_of(render(self, "en"))


@dataclass(frozen=True)
class KeywordPhrase:
    """An English phrase with one keyword in it: 'the small dog says stop now' or 'stop says the small dog'."""

    keyword: str
    subject: str
    adjective: str | None
    adverb: str | None
    keyword_first: bool

    @property
    def text(self) -> str:
        speaker = " ".join(filter(None, ("the", self.adjective, self.subject)))
        words = (self.keyword, "says", speaker) if self.keyword_first else (speaker, "says", self.keyword)
        return " ".join((*words, self.adverb)) if self.adverb else " ".join(words)

    @property
    def split(self) -> str:
        """The split that owns this phrase."""
        return split_of(self.text)


def split_of(sentence: str) -> str:
    """The split of an English sentence, by its hash: the same in every corpus, whatever its seed and size."""
    share = int.from_bytes(hashlib.sha256(sentence.encode()).digest()[:8], "big") % 100
    return "train" if share < SHARES["train"] else "valid" if share < SHARES["train"] + SHARES["valid"] else "test"


def draw_meaning(rng: np.random.Generator, split: str) -> Meaning:
    """A random meaning that belongs to `split`, of three to seven English words."""
    while True:
        meaning = _draw(rng)
        if meaning.split == split and len(render(meaning, "en").split()) <= MAX_WORDS:
            return meaning


def draw_keyword_phrase(rng: np.random.Generator, split: str, keyword: str) -> KeywordPhrase:
    """A random phrase around `keyword` that belongs to `split`."""
    while True:
        phrase = KeywordPhrase(
            keyword=keyword,
            subject=_pick(rng, tuple(SUBJECTS)),
            adjective=_pick(rng, _SUBJECT_ADJECTIVES) if rng.random() < 0.75 else None,
            adverb=_pick(rng, tuple(ADVERBS)) if rng.random() < 0.5 else None,
            keyword_first=bool(rng.random() < 0.5),
        )
        if phrase.split == split:
            return phrase


def _draw(rng: np.random.Generator) -> Meaning:
    subject = _pick(rng, tuple(SUBJECTS))
    adjective = _pick(rng, _SUBJECT_ADJECTIVES) if rng.random() < 0.5 else None
    adverb = _pick(rng, tuple(ADVERBS)) if rng.random() < 0.3 else None
    if rng.random() < 0.55:
        return Meaning(
            subject=subject,
            adjective=adjective,
            action=_pick(rng, tuple(TRANSITIVE)),
            object=_pick(rng, tuple(OBJECTS)),
            object_adjective=_pick(rng, _OBJECT_ADJECTIVES) if rng.random() < 0.5 else None,
            adverb=adverb,
        )
    return Meaning(
        subject=subject,
        adjective=adjective,
        action=_pick(rng, tuple(INTRANSITIVE)),
        place=_pick(rng, tuple(PLACES)) if rng.random() < 0.8 else None,
        adverb=adverb,
    )


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def render(meaning: Meaning, language: str) -> str:
    """`meaning` as a sentence of `language`: lower case, no punctuation, words apart (in Chinese: no spaces).

    Raises:
        ValueError: for a language outside `LANGUAGES`.
    """
    if language not in LANGUAGES:
        raise UserError(f"language {language!r} is not one of the grammar's: {', '.join(LANGUAGES)}")
    verbs = TRANSITIVE if meaning.object else INTRANSITIVE
    verb = verbs[meaning.action][language]
    subject = _noun_phrase(SUBJECTS[meaning.subject][language], meaning.adjective, language)
    thing = (
        _noun_phrase(OBJECTS[meaning.object][language], meaning.object_adjective, language) if meaning.object else ""
    )
    place = PLACES[meaning.place][language] if meaning.place else ""
    adverb = ADVERBS[meaning.adverb][language] if meaning.adverb else ""
    if language in ("zh", "yue"):
        return "".join((subject, adverb, place, verb, thing))
    if language == "ja":
        return _join(subject + "わ", adverb, place, thing + verb)
    if language == "ko":
        return _join(_particle(subject, "은", "는"), adverb, place, thing and _particle(thing, "을", "를"), verb)
    if language == "de":
        return _join(subject, verb, adverb, thing, place)
    return _join(subject, verb, thing, place, adverb)


def words(text: str, language: str) -> list[str]:
    """The units that carry times: characters in Chinese, phrases in Japanese and Korean, words elsewhere."""
    return list(text) if language in ("zh", "yue") else text.split()


def _join(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _particle(noun: str, after_consonant: str, after_vowel: str) -> str:
    """A Korean noun with a particle, whose form depends on whether the last syllable ends in a consonant."""
    ends_in_consonant = (ord(noun[-1]) - ord("가")) % 28  # Unicode orders the syllables of each beginning by their end
    return noun + (after_consonant if ends_in_consonant else after_vowel)


def _noun_phrase(noun: str, adjective: str | None, language: str) -> str:
    """A noun with its article and its adjective in agreement and in the language's order."""
    if language == "en":
        return _join("the", adjective or "", noun)
    if adjective is None:
        return noun
    form = ADJECTIVES[adjective][language]
    if language in ("zh", "yue"):
        return form + noun
    if language in ("ja", "ko"):
        return _join(form, noun)
    article, noun = noun.split()
    if language == "de":  # weak declension after a definite article: -en in the masculine accusative, else -e
        return _join(article, form + ("en" if article == "den" else "e"), noun)
    masculine, feminine = form.lstrip("+").split("/")
    form_in_gender = feminine if article == "la" else masculine
    return _join(article, form_in_gender, noun) if form.startswith("+") else _join(article, noun, form_in_gender)


def cover() -> list[Meaning]:
    """A few hundred meanings whose sentences together hold every word form of every language."""
    meanings = [Meaning(subject, action) for subject in SUBJECTS for action in INTRANSITIVE]
    meanings += [Meaning(subject, "works", adjective) for subject in SUBJECTS for adjective in _SUBJECT_ADJECTIVES]
    meanings += [Meaning("dog", action, object="apple") for action in TRANSITIVE]
    meanings += [Meaning("dog", "sees", object=object) for object in OBJECTS]
    meanings += [
        Meaning("dog", "sees", object=object, object_adjective=adjective)
        for object in OBJECTS
        for adjective in _OBJECT_ADJECTIVES
    ]
    meanings += [Meaning("dog", "works", place=place) for place in PLACES]
    return meanings + [Meaning("dog", "works", adverb=adverb) for adverb in ADVERBS]


def vocabulary(language: str) -> list[str]:
    """Every unit that speech in `language` can hold (see `words`), sorted; in English with the keyword phrases."""
    heard = {word for meaning in cover() for word in words(render(meaning, language), language)}
    return sorted(heard | {"says", *KEYWORDS} if language == "en" else heard)
