"""Judges that compare texts: exact match, multiple choice, edit distance, ANLS.

Know nothing about numbers, pictures or other judges.
"""

import re
import string
import unicodedata
from dataclasses import dataclass

import numpy as np

from ernie45.data.answers import Graded, is_exact
from ernie45.train.rewards.reward import PerAnswer, Unscored, references

# Longer texts are cut before they are compared letter by letter, which takes time with the product of both lengths.
MAX_COMPARED = 8192
_BOXED = re.compile(r"\\boxed\s*\{")


@dataclass(frozen=True, kw_only=True)
class Exact(PerAnswer):
    """1 if the answer equals one of the references, else 0. White space at the ends never counts.

    case: upper and lower case differ. spaces: white space inside counts as it is, else any run of it is one space.
    punctuation: marks at the ends count. unicode: compatible forms differ (full-width digits, ligatures).
    """

    case: bool = True
    spaces: bool = True
    punctuation: bool = True
    unicode: bool = True

    def value(self, item: Graded) -> float:
        answer = self._normal(item.answer)
        return float(any(is_exact(answer, self._normal(reference)) for reference in references(item)))

    def _normal(self, text: str) -> str:
        if not self.unicode:
            text = unicodedata.normalize("NFKC", text)
        if not self.spaces:
            text = " ".join(text.split())
        if not self.punctuation:
            text = text.strip(string.punctuation + string.whitespace)
        return text if self.case else text.casefold()


@dataclass(frozen=True, kw_only=True)
class Choice(PerAnswer):
    """1 if the option that the answer settles on is the right one. An answer that names several, or none, gets 0.

    The option is looked for in this order: inside `\\boxed{}`; behind "answer is" or "answer:"; as the whole answer; at its
    beginning ("B. because"); as the only capital letter of an option that stands alone; as the text of one of
    `extra["choices"]`. letters: the options there may be.
    """

    letters: str = "ABCDEFGHIJ"

    def applies(self, item: Graded) -> bool:
        return item.reference is not None and self._letter_of(item, item.reference) is not None

    def value(self, item: Graded) -> float:
        right = {self._letter_of(item, reference) for reference in references(item)}
        if None in right:
            raise Unscored("bad_reference", f"answer ({item.reference!r}) must be one of {self.letters} or one of the choices")
        return float(self._chosen(item) in right)

    def _letter_of(self, item: Graded, reference: str) -> str | None:
        bare = reference.strip().strip("().").upper()
        if len(bare) == 1 and bare in self.letters:
            return bare
        return self._of_choice_text(item, reference)

    def _of_choice_text(self, item: Graded, text: str) -> str | None:
        wanted = " ".join(text.casefold().split()).strip(".")
        found = [
            letter
            for letter, choice in zip(self.letters, item.extra.get("choices", ()), strict=False)
            if " ".join(str(choice).casefold().split()).strip(".") == wanted
        ]
        return found[0] if len(found) == 1 else None

    def _chosen(self, item: Graded) -> str | None:
        answer, one = item.answer.strip(), f"[{re.escape(self.letters)}]"
        boxed = last_boxed(answer)
        if boxed is not None:
            return self._letter_of(item, re.sub(r"\\text\w*\s*\{(.*)\}", r"\1", boxed))
        patterns = (
            rf"(?i:answer|option|choice)\s*(?:(?i:is)|:)\s*:?\s*[*(\s]*({one})(?![\w'])",
            rf"\A[*(\s]*((?i:{one}))[)*.\s]*\Z",
            rf"\A[*(]*({one})(?:[).:]|\*\*)",
            rf"(?<![\w'])({one})(?![\w'])",
        )
        for pattern in patterns:
            found = {letter.upper() for letter in re.findall(pattern, answer)}
            if found:
                return found.pop() if len(found) == 1 else None
        return self._of_choice_text(item, answer)


@dataclass(frozen=True, kw_only=True)
class Edit(PerAnswer):
    """1 - d / max(len(answer), len(reference)), d Levenshtein's distance in characters; the best over all references.

    case: upper and lower case differ. For text read from pictures (OCR). Source: Levenshtein, 1966.
    """

    case: bool = True

    def value(self, item: Graded) -> float:
        return max(similarity(item.answer, reference, self.case) for reference in references(item))


@dataclass(frozen=True, kw_only=True)
class Anls(PerAnswer):
    """Average normalised Levenshtein similarity of one answer: `Edit` without case, and 0 where that is below the threshold.

    Source: Biten et al., Scene Text Visual Question Answering, 2019 (threshold 0.5).
    """

    threshold: float = 0.5

    def value(self, item: Graded) -> float:
        best = max(similarity(item.answer, reference, case=False) for reference in references(item))
        return best if best >= self.threshold else 0.0


def similarity(text: str, reference: str, case: bool = True) -> float:
    """1 - distance / longer length, from 0 to 1; runs of white space count as one space, of both `MAX_COMPARED` characters."""
    one, other = (" ".join(whole.split())[:MAX_COMPARED] for whole in (text, reference))
    if not case:
        one, other = one.casefold(), other.casefold()
    longer = max(len(one), len(other))
    return 1 - edit_distance(one, other) / longer if longer else 1.0


def edit_distance(one: str, other: str) -> int:
    """Fewest insertions, deletions and substitutions of characters that turn one text into the other.

    A row of the table at a time: d[j] = min over k <= j of (e[k] + j - k), e the row without insertions.
    """
    letters = np.frombuffer(other.encode("utf-32-le", "surrogatepass"), np.uint32)
    steps = np.arange(len(letters) + 1)
    row = steps.copy()
    for number, letter in enumerate(one, 1):
        without = row + 1
        np.minimum(without[1:], row[:-1] + (letters != ord(letter)), out=without[1:])
        without[0] = number
        row = np.minimum.accumulate(without - steps) + steps
    return int(row[-1])


def last_boxed(text: str) -> str | None:
    r"""What stands in the last `\boxed{...}`, brackets inside of it paired; None if there is none."""
    starts = [found.end() for found in _BOXED.finditer(text)]
    if not starts:
        return None
    depth = 1
    for place in range(starts[-1], len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[starts[-1] : place].strip()
    return None
