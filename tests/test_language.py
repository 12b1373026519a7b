"""Which language a final is in: what share is told right, and nothing told wrong."""

from __future__ import annotations

import subprocess
import sys

import pytest

from bridge.engine.language import load, tell
from bridge.errors import BridgeError

BOTH = ("en", "fr")

ENGLISH = """
Hello, this is John Miller speaking. / I would like to speak with the manager, please.
Can you hear me? / Yes, that is correct. / No, thank you. / I want to cancel my appointment.
Could you please hold the line for a moment? / My number is five zero one two three four.
What can I do for you? / I am calling about my last invoice. / Please call me back on Monday.
Sorry, I did not get that. / Can you repeat the last digits? / The line is very bad.
One moment, I will put you through. / Press one for sales. / How much does it cost?
I have been waiting for twenty minutes. / My account number ends with forty two.
That is very kind of you. Goodbye. / Thanks a lot. / It does not work any more.
Who am I speaking to? / I moved last week and need to change my address. / Okay, bye.
When will the technician come? / Is it possible to come on Tuesday morning? / Good morning.
All right, I will do that. / My card was stolen. / Three hundred and fifty. / Right, I see.
"""

FRENCH = """
Bonjour, Jean Dupont à l'appareil. / Je voudrais parler au directeur, s'il vous plaît.
Est-ce que vous m'entendez ? / Oui, c'est exact. / Non merci. / Je veux annuler mon rendez-vous.
Pouvez-vous patienter un instant ? / Mon numéro est le zéro six douze trente-quatre.
Que puis-je faire pour vous ? / J'appelle au sujet de ma dernière facture. / Merci beaucoup.
Rappelez-moi lundi, s'il vous plaît. / Pardon, je n'ai pas compris. / La ligne est très mauvaise.
Vous pouvez répéter les derniers chiffres ? / Ne quittez pas, je vous passe le service.
Tapez un pour les ventes. / Combien ça coûte ? / J'attends depuis vingt minutes.
Mon numéro de compte se termine par quarante-deux. / C'est très gentil à vous. Au revoir.
D'accord, au revoir. / Ça ne marche plus. / À qui ai-je l'honneur ? / Ah oui, je vois.
J'ai déménagé la semaine dernière et je dois changer mon adresse. / Quand passe le technicien ?
C'est possible de venir mardi matin ? / Très bien, je vais faire ça. / On m'a volé ma carte.
Trois cent cinquante. / Pas de problème.
"""

ENGLISH_WORDS = """yes no yeah okay hello hi right sure please thanks goodbye bye sorry what one two
    five six nine john correct message information absolutely samson pardon uh"""
FRENCH_WORDS = """oui non ouais bonjour allô merci pardon quoi un deux cinq six huit neuf voilà bien
    jean correct message information absolument samedi euh"""


def sentences(text: str) -> list[str]:
    return [one.strip() for line in text.strip().splitlines() for one in line.split(" / ")]


@pytest.fixture(autouse=True, scope="module")
def installed() -> None:
    pytest.importorskip("py3langid")


@pytest.mark.parametrize(("language", "text"), [("en", ENGLISH), ("fr", FRENCH)])
@pytest.mark.parametrize("plain", [False, True])
def test_sentences_of_the_telephone(language: str, text: str, plain: bool) -> None:
    """At least nine in ten right, also without capitals and punctuation; none wrong."""
    said = sentences(text)
    assert len(said) >= 30
    if plain:
        said = [one.lower().translate(str.maketrans("", "", ",.?")) for one in said]
    told = [tell(one, BOTH) for one in said]
    assert set(told) <= {language, ""}
    assert told.count(language) >= 0.9 * len(said)


@pytest.mark.parametrize(("language", "words"), [("en", ENGLISH_WORDS), ("fr", FRENCH_WORDS)])
def test_a_single_word_is_told_right_or_not_at_all(language: str, words: str) -> None:
    for word in words.split():
        for spelt in (word, f"{word.capitalize()}.", word.upper()):
            assert tell(spelt, BOTH) in (language, ""), spelt


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("This is Jean-Pierre Dubois from Montpellier.", "en"),
        ("Je m'appelle Kevin Smith.", "fr"),
        ("Paris, please.", "en"),
        ("Paris, s'il vous plaît.", "fr"),
        ("Yes.", ""),
        ("Oui.", ""),
        ("", ""),
        (" ", ""),
        ("...", ""),
        ("501 234", ""),
        ("\udcff\x00😀", ""),
    ],
)
def test_what_is_hard(text: str, language: str) -> None:
    assert tell(text, BOTH) == language
    assert tell(text, BOTH[::-1]) == language


def test_a_very_long_text_is_told_by_its_beginning() -> None:
    assert tell("Je voudrais parler au directeur. " * 20 + "the " * 10**6, BOTH) == "fr"


def test_more_languages_than_two() -> None:
    among = ("en", "fr", "de", "es")
    assert tell("Ich möchte bitte mit dem Geschäftsführer sprechen.", among) == "de"
    assert tell("Quisiera hablar con el gerente, por favor.", among) == "es"
    assert tell("I would like to speak with the manager, please.", BOTH) == "en"


def test_a_language_that_nobody_knows_is_refused() -> None:
    with pytest.raises(BridgeError) as e:
        tell("Hello.", ("en", "xx"))
    assert str(e.value) == "whether a text is 'xx' cannot be told: no such language"


def test_the_model_is_loaded_once() -> None:
    assert load(BOTH) is load(BOTH)


def run(code: str) -> str:
    """In a process of its own, where any warning is an error."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_with_one_language_nothing_is_loaded() -> None:
    assert run(
        "import sys; from bridge.engine.language import tell\n"
        "print(tell('Oui.', ['en']), tell('Oui.', []) == '', 'py3langid' in sys.modules)"
    ) == "en True False"  # fmt: skip


FAILING = """
from bridge.engine.language import tell
from bridge.errors import BridgeError
try:
    tell("Oui.", ("en", "fr"))
except BridgeError as e:
    print(e)
"""


def test_without_py3langid_it_says_what_to_install() -> None:
    assert run("import sys; sys.modules['py3langid'] = None" + FAILING) == (
        "to tell languages apart py3langid is needed: pip install 'callscribe[kyutai]'"
    )


def test_without_room_it_says_how_much_is_needed() -> None:
    said = run("import tempfile; tempfile.tempdir = '/nowhere'" + FAILING)
    assert said.startswith(
        "to tell languages apart 70 MB of room for a temporary file are needed: [Errno 2]"
    )


def test_it_asks_no_network() -> None:
    """Python tells an audit hook of every socket and process."""
    assert run(
        "import sys; from bridge.engine.language import tell\n"
        "def hook(event, args):\n"
        "    if event.startswith(('socket.', 'urllib.', 'subprocess.', 'os.system')):\n"
        "        raise SystemExit(f'{event}: {args}')\n"
        "sys.addaudithook(hook)\n"
        "print(tell('Je voudrais parler au directeur.', ('en', 'fr')))"
    ) == "fr"  # fmt: skip
