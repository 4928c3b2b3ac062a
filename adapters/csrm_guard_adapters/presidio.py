"""Personal data found by Microsoft Presidio: `Guard(policy, checks={"no-personal-data": presidio_check()})`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from csrm_guard import Finding, Message

__all__ = ["Analyzer", "PresidioCheck", "presidio_check"]

# Found in most texts, and seldom about a person: only on request.
_UNASKED = ("DATE_TIME", "URL")


class Analyzer(Protocol):
    """What is used of `presidio_analyzer.AnalyzerEngine`."""

    def analyze(self, text: str, language: str, entities: list[str] | None = None) -> Sequence[Any]:
        """Return results with `start`, `end` and `score`."""
        ...

    def get_supported_entities(self, language: str | None = None) -> list[str]:
        """Return what it can find."""
        ...


class PresidioCheck:
    """Ask an analyzer for the places of a text that hold personal data; q is its score.

    Args:
        analyzer: finds.
        entities: what to find, such as `EMAIL_ADDRESS`.
        language: of the texts.
    """

    def __init__(self, analyzer: Analyzer, entities: Sequence[str], language: str) -> None:
        self._analyzer, self._entities, self._language = analyzer, list(entities), language

    def __call__(self, text: str, messages: tuple[Message, ...] = (), /) -> list[Finding]:
        """Return one finding per place, in order."""
        found = self._analyzer.analyze(text, self._language, self._entities)
        places = sorted((result.start, result.end, result.score) for result in found)
        return [Finding((start, end), min(max(score, 0.0), 1.0)) for start, end, score in places]


def presidio_check(*entities: str, analyzer: Analyzer | None = None, language: str = "en") -> PresidioCheck:
    """Return a check for personal data.

    Presidio's score is the finding's q: give the rule a `threshold` that suits it (a telephone number scores 0.4). The
    analyzer that is built by default knows patterns and check digits, and needs no download. Names and places are found
    by one of your own, with a language model in it.

    Args:
        entities: of Presidio's; none given: all that the analyzer finds but dates and links.
        analyzer: a `presidio_analyzer.AnalyzerEngine` of your own.
        language: of the texts.

    Raises:
        ModuleNotFoundError: no analyzer is given and Presidio is not installed.
        ValueError: the analyzer cannot find one of the entities.
    """
    engine = analyzer if analyzer is not None else _patterns(language)
    known = engine.get_supported_entities(language)
    unknown = sorted(set(entities) - set(known))
    if unknown:
        raise ValueError(f"this analyzer finds no {', '.join(unknown)}; it finds {', '.join(sorted(known))}")
    return PresidioCheck(engine, entities or sorted(set(known) - set(_UNASKED)), language)


def _patterns(language: str) -> Analyzer:
    """Return an analyzer of patterns, with a tokenizer for the words around them."""
    try:
        import spacy
        import tldextract
        from presidio_analyzer import AnalyzerEngine, RecognizerRegistry
        from presidio_analyzer.nlp_engine import SpacyNlpEngine
        from presidio_analyzer.predefined_recognizers import EmailRecognizer
    except ModuleNotFoundError as exc:
        raise ModuleNotFoundError('presidio_check needs Presidio: pip install "csrm-guard[presidio]"') from exc

    class OfflineEmailRecognizer(EmailRecognizer):
        # Presidio's own asks the network for the list of top-level domains; this is the one that was installed.
        _domains = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)

        def validate_result(self, pattern_text: str) -> bool:
            return bool(self._domains(pattern_text).fqdn)

    words: Any = SpacyNlpEngine(models=[{"lang_code": language, "model_name": f"blank:{language}"}])
    words.nlp = {language: spacy.blank(language)}  # loaded: no package of that name is looked for
    registry = RecognizerRegistry(supported_languages=[language])
    registry.load_predefined_recognizers(languages=[language])
    registry.remove_recognizer("SpacyRecognizer")
    registry.remove_recognizer("EmailRecognizer")
    registry.add_recognizer(OfflineEmailRecognizer(supported_language=language))
    found: Analyzer = AnalyzerEngine(registry=registry, nlp_engine=words, supported_languages=[language])
    return found
