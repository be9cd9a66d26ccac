"""Which fingerprints are served, and when a wanted one is refused."""

import asyncio

import pytest

from deployments.errors import FingerprintError, RequestError, TowerUnavailableError
from deployments.routing import fingerprints
from deployments.routing.fingerprints import Fingerprints, refuse_others, wanted_by


class Client:
    """A TowerClient that heard `one`; `now` is what its tower has become."""

    def __init__(self, now="one") -> None:
        self.now, self.asked, self.silent = now, 0, False

    async def fingerprint(self, anew=False, wake=False) -> str:
        if not anew:
            return "one"
        self.asked += 1
        if self.silent:
            await asyncio.Event().wait()
        if self.now is None:
            raise TowerUnavailableError("gone")
        return self.now


def of(**clients) -> Fingerprints:
    return Fingerprints("p", clients)


async def test_a_fingerprint_is_of_the_tower_and_of_the_preprocessing():
    """Either changes it; towers that the application lacks are left out."""
    one = await of(text=Client()).served()
    assert list(one) == ["text"]
    assert one == await of(text=Client(), vision=Client()).served(["text"])
    assert one != await of(text=Client("two")).served(anew=True)
    assert one != await Fingerprints("q", {"text": Client()}).served()


async def test_towers_that_do_not_answer_are_left_out(monkeypatch):
    """One fails and one is silent; the third is there."""
    monkeypatch.setattr(fingerprints, "ANSWER_S", 0.05)
    silent = Client()
    silent.silent = True
    assert await of(text=Client(None), vision=silent).served(anew=True) == {}
    both = await of(text=silent, vision=Client("two")).served(anew=True)
    assert list(both) == ["vision"]


async def test_what_is_served_passes_without_asking_a_tower():
    """So does a request that wants none."""
    client = Client()
    served = of(text=client)
    await served.check(await served.served())
    await served.check({})
    assert client.asked == 0


async def test_a_tower_is_asked_before_its_fingerprint_is_refused():
    """The Router may have heard only of the one before it; what it is now decides."""
    new = Client("two")
    wanted = {"text": of().combined("two")}
    await of(text=new).check(wanted)
    assert new.asked == 1
    with pytest.raises(FingerprintError, match=of().combined("one")):
        await of(text=Client()).check(wanted)


async def test_a_tower_that_is_gone_is_not_taken_for_another_one():
    """The caller hears that it does not answer."""
    with pytest.raises(TowerUnavailableError, match="text tower does not answer"):
        await of(text=Client(None)).check({"text": "0123456789abcdef"})


def test_a_caller_wants_something_of_the_towers_in_use_only():
    """Both, one, or any."""
    assert wanted_by("text:a vision:b", {"text", "vision"}) == {"text": "a", "vision": "b"}
    assert wanted_by("text:a vision:b", {"vision"}) == {"vision": "b"}
    assert wanted_by("vision:b", {"text"}) == {}
    assert wanted_by(None, {"text"}) == {}


@pytest.mark.parametrize("text", ["", "abc", "text:a other:b"])
def test_a_fingerprint_of_another_form_is_refused(text):
    """The message shows it and the form, and no more of it than that."""
    with pytest.raises(RequestError, match=f"asked for is '{text}'; it has the form"):
        wanted_by(text, {"text"})
    with pytest.raises(RequestError) as refused:
        wanted_by("x" * 10_000, {"text"})
    assert len(str(refused.value)) < 200


def test_every_tower_that_made_rows_must_be_the_wanted_one():
    """Rows of two towers are refused where one is another; of a tower not named all pass."""
    refuse_others([("text", "a"), ("vision", "x")], {"text": "a"})
    with pytest.raises(FingerprintError, match="the text fingerprint here is b"):
        refuse_others([("text", "a"), ("text", "b")], {"text": "a"})
