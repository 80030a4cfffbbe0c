"""Draws stages.svg and stages-zh.svg: what the two training stages compare.

python docs/images/stages.py
"""

from pathlib import Path

TEXTS = {
    "stages.svg": {
        "distill": "Stage 1, distill: the student learns from the teacher",
        "align": "Stage 2, align: images and captions of a pair come together",
        "image": "image",
        "text": "caption",
        "caption": "一只猫 / a cat",
        "teacher": "teacher (frozen)",
        "student": "student (trained)",
        "image tower": "image tower",
        "text tower": "text tower",
        "losses": "losses: feature maps, token features, embeddings",
        "contrast": "contrast in both directions",
        "embeddings": "embeddings",
    },
    "stages-zh.svg": {
        "distill": "第一阶段，蒸馏：学生向教师学习",
        "align": "第二阶段，对齐：同一对图文的向量互相靠近",
        "image": "图片",
        "text": "描述",
        "caption": "一只猫 / a cat",
        "teacher": "教师（冻结）",
        "student": "学生（训练）",
        "image tower": "图像塔",
        "text tower": "文本塔",
        "losses": "损失：特征图、词元特征、向量",
        "contrast": "双向对比",
        "embeddings": "向量",
    },
}
STYLE = """
text { font: 15px system-ui, "Noto Sans CJK SC", sans-serif; fill: #1f2328; text-anchor: middle }
.title { font-weight: 600; font-size: 17px; text-anchor: start }
.small { font-size: 13px }
.box { fill: #f6f8fa; stroke: #8c959f; rx: 8 }
.teacher { fill: #ddf4ff; stroke: #2f81f7 }
.student { fill: #fff1e5; stroke: #e8710a }
.line { fill: none; stroke: #59636e; stroke-width: 1.5; marker-end: url(#arrow) }
.loss { fill: none; stroke: #cf222e; stroke-width: 2; stroke-dasharray: 5 4 }
.loss { marker-start: url(#red); marker-end: url(#red) }
.red { fill: #cf222e }
.same { fill: #e8710a }
.other { fill: #d0d7de }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  .box { fill: #161b22; stroke: #6e7681 }
  .teacher { fill: #0c2d6b; stroke: #2f81f7 }
  .student { fill: #5a1e02; stroke: #e8710a }
  .line { stroke: #9198a1 }
  .red { fill: #ff7b72 }
  .loss { stroke: #ff7b72 }
  .other { fill: #3d444d }
}
"""


def marker(name: str, colour: str) -> str:
    head = f'<path d="M0 0 8 4 0 8z" fill="{colour}"/>'
    return (
        f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" '
        f'markerHeight="8" '
        f'orient="auto-start-reverse">{head}</marker>'
    )


def box(x: int, y: int, width: int, kind: str, text: str) -> str:
    """A box 44 high with its text in the middle."""
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="44" class="box {kind}"/>'
        f'<text x="{x + width // 2}" y="{y + 27}">{text}</text>'
    )


def line(path: str, kind: str = "line") -> str:
    return f'<path d="{path}" class="{kind}"/>'


def label(x: int, y: int, text: str, kind: str = "") -> str:
    return f'<text x="{x}" y="{y}" class="{kind}">{text}</text>'


def distill(texts: dict[str, str]) -> list[str]:
    parts = [label(20, 30, texts["distill"], "title")]
    parts += [label(320, 62, texts["teacher"]), label(690, 62, texts["student"])]
    for y, source, tower, caption in (
        (80, "image", "image tower", ""),
        (180, "text", "text tower", "caption"),
    ):
        parts.append(box(20, y, 120, "", texts[source]))
        parts += [label(80, y + 62, texts[caption], "small")] if caption else []
        parts += [
            box(230, y, 180, "teacher", texts[tower]),
            box(600, y, 180, "student", texts[tower]),
        ]
        parts.append(line(f"M140 {y + 22} H224"))
        parts.append(line(f"M180 {y + 22} V{y + 54} H690 V{y + 50}"))
        parts.append(line(f"M420 {y + 22} H590", "loss"))
    return [*parts, label(505, 165, texts["losses"], "small red")]


def align(texts: dict[str, str]) -> list[str]:
    parts = [label(20, 290, texts["align"], "title")]
    for y, source, tower, caption in (
        (320, "image", "image tower", ""),
        (420, "text", "text tower", "caption"),
    ):
        parts.append(box(20, y, 120, "", texts[source]))
        parts += [label(80, y + 62, texts[caption], "small")] if caption else []
        parts += [box(230, y, 180, "student", texts[tower]), line(f"M140 {y + 22} H224")]
    parts += [line("M410 342 H516"), line("M410 442 H470 V392 H516")]
    parts.append(label(463, 335, texts["embeddings"], "small"))
    for row in range(4):
        for column in range(4):
            kind = "same" if row == column else "other"
            parts.append(
                f'<rect x="{530 + 34 * column}" y="{316 + 34 * row}" width="30" '
                f'height="30" class="{kind}"/>'
            )
    return [*parts, label(597, 476, texts["contrast"], "small red")]


def svg(texts: dict[str, str]) -> str:
    parts = [*distill(texts), *align(texts)]
    defs = (
        f"<defs>{marker('arrow', '#59636e')}{marker('red', '#cf222e')}</defs><style>{STYLE}</style>"
    )
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 800 500" '
        f'width="800">{defs}\n{body}\n</svg>\n'
    )


def main() -> None:
    for name, texts in TEXTS.items():
        Path(__file__).with_name(name).write_text(svg(texts), encoding="utf-8")


if __name__ == "__main__":
    main()
