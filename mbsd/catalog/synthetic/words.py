"""The synthetic shop's vocabulary, in Chinese and English: the attributes, and the words that fill titles.

Two attributes are in pictures alone (pattern, collar), two in titles alone (material, style) and two in both (colour,
sleeve), so that a task can measure what a model reads from which modality. No word of the first two is in any title.
Pictures are drawn by a value's index in its tuple; both languages list the same things in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Language = Literal["zh", "en"]

# Indices of the attributes in `Vocabulary.names`.
PATTERN, COLLAR, COLOUR, SLEEVE, MATERIAL, STYLE = range(6)
WHERE_SEEN = ("image", "image", "both", "both", "title", "title")
# Indices in `Vocabulary.categories` of those that have neither collar nor sleeve.
BOTTOMS = (6, 7)


@dataclass(frozen=True)
class Vocabulary:
    """The words of one language.

    Attributes:
        names: the six attributes, in the order of the constants above.
        values: the values of each attribute; a value is the word that a query uses.
        categories: eight kinds of clothes.
        colour_synonyms: for each colour, words that a title may have instead of it.
        brands, seasons, genders, adjectives: words that fill titles and have nothing to do with an attribute.
        separator: what stands between the words of a title.
    """

    names: tuple[str, ...]
    values: tuple[tuple[str, ...], ...]
    categories: tuple[str, ...]
    colour_synonyms: tuple[tuple[str, ...], ...]
    brands: tuple[str, ...]
    seasons: tuple[str, ...]
    genders: tuple[str, ...]
    adjectives: tuple[str, ...]
    separator: str


def _brands(first: str, second: str) -> tuple[str, ...]:
    return tuple(a + b for a in first.split() for b in second.split())


VOCABULARY: dict[Language, Vocabulary] = {
    "zh": Vocabulary(
        names=("图案", "领型", "颜色", "袖长", "材质", "风格"),
        values=(
            ("纯色", "条纹", "波点", "格子", "斜纹", "拼色"),
            ("圆领", "V领", "翻领", "连帽"),
            ("红色", "橙色", "黄色", "绿色", "蓝色", "紫色", "黑色", "白色"),
            ("长袖", "短袖", "无袖"),
            ("纯棉", "真丝", "亚麻", "羊毛", "牛仔"),
            ("韩版", "法式", "复古", "通勤", "运动", "街头"),
        ),
        categories=("T恤", "衬衫", "连衣裙", "毛衣", "夹克", "卫衣", "半身裙", "长裤"),
        colour_synonyms=(
            ("大红", "正红"),
            ("橘色", "暖橙"),
            ("鹅黄", "明黄"),
            ("草绿", "墨绿"),
            ("宝蓝", "天蓝"),
            ("葡萄紫", "香芋紫"),
            ("炭黑", "曜黑"),
            ("米白", "本白"),
        ),
        brands=_brands("云岚 木棠 禾朵 青屿 诺芙 拾光 南枝 贝洛 初禾 知夏", "优品 坊 家 记 原创 定制"),
        seasons=("春季", "夏季", "秋季", "冬季", "春秋", "早秋"),
        genders=("女", "男", "男女同款", "情侣"),
        adjectives=(
            "宽松",
            "显瘦",
            "百搭",
            "气质",
            "休闲",
            "洋气",
            "舒适",
            "透气",
            "减龄",
            "小众",
            "高级感",
            "ins潮",
            "时尚",
            "潮流",
            "日常",
            "新品",
        ),
        separator="",
    ),
    "en": Vocabulary(
        names=("pattern", "collar", "colour", "sleeve", "material", "style"),
        values=(
            ("solid", "striped", "dotted", "checked", "diagonal", "two-tone"),
            ("crew-neck", "v-neck", "turn-down", "hooded"),
            ("red", "orange", "yellow", "green", "blue", "purple", "black", "white"),
            ("long-sleeve", "short-sleeve", "sleeveless"),
            ("cotton", "silk", "linen", "wool", "denim"),
            ("casual", "french", "vintage", "office", "sporty", "street"),
        ),
        categories=("t-shirt", "shirt", "dress", "sweater", "jacket", "sweatshirt", "skirt", "trousers"),
        colour_synonyms=(
            ("scarlet", "ruby"),
            ("tangerine", "amber"),
            ("lemon", "mustard"),
            ("emerald", "olive"),
            ("navy", "azure"),
            ("violet", "lilac"),
            ("charcoal", "jet"),
            ("ivory", "cream"),
        ),
        brands=_brands("Alder Briar Corvo Dune Fenn Holm Juno Larke Moro Nevis", "son house works lane bury ford"),
        seasons=("spring", "summer", "autumn", "winter", "all-season", "early autumn"),
        genders=("women's", "men's", "unisex", "girls'"),
        adjectives=(
            "loose",
            "slim",
            "versatile",
            "elegant",
            "relaxed",
            "comfy",
            "breathable",
            "light",
            "chic",
            "modern",
            "everyday",
            "new",
        ),
        separator=" ",
    ),
}
