"""Perceptions with strengths: what each step does to pixels, chains, their caches, and listeners that have one."""

from __future__ import annotations

import colorsys

import pytest
import torch

from dixit.config import DataConfig, ListenerConfig
from dixit.config_perception import STEPS, PerceptionStep
from dixit.data.images import load, pixels
from dixit.models.perception import perceive, perception_key
from dixit.models.perception_steps import MACHADO
from dixit.training.runs import make_listeners

Step = PerceptionStep
IMAGES = (torch.rand(2, 3, 48, 36, generator=torch.Generator().manual_seed(0)) * 255).round() / 255
ONE_OF_EACH = [Step(blur=3.0), Step(jpeg=5), Step(crop=(0.0, 0.0, 1.0, 0.5)), Step(occlude=(0.25, 0.0, 1.0, 0.5)),
               Step(rotate_hue=120.0), Step(colour_blind="protan"), Step(cataract=0.6), Step(noise=0.2),
               Step(downsample=12), Step(contrast=0.3)]
GREYS = torch.linspace(0, 1, 16).expand(1, 3, 4, 16)


def flat(*colour: float, size: int = 8) -> torch.Tensor:
    """A picture of one colour, 0 to 255."""
    return torch.tensor(colour).view(1, 3, 1, 1).expand(1, 3, size, size) / 255


def seen(images: torch.Tensor, **step: object) -> torch.Tensor:
    return perceive(images, (Step(**step),))


def test_every_step_is_tried():
    assert [key for step in ONE_OF_EACH for key in step.given] == list(STEPS)


@pytest.mark.parametrize("step", ONE_OF_EACH, ids=str)
def test_a_step_keeps_shape_and_range_and_leaves_its_input(step):
    given = IMAGES.clone()
    found = perceive(given, (step,))
    assert found.shape == IMAGES.shape and found.dtype == IMAGES.dtype and torch.equal(given, IMAGES)
    assert found.min() >= -1e-6 and found.max() <= 1 + 1e-6 and not torch.allclose(found, IMAGES, atol=0.01)


@pytest.mark.parametrize("step", ONE_OF_EACH, ids=str)
def test_an_image_is_seen_alike_in_any_batch_and_any_time(step):
    both = perceive(IMAGES, (step,))
    torch.testing.assert_close(perceive(IMAGES[1:], (step,)), both[1:], atol=1e-6, rtol=0)
    assert torch.equal(perceive(IMAGES, (step,)), both)


@pytest.mark.parametrize("step", [Step(blur=64.0), Step(downsample=1), Step(downsample=1024), Step(cataract=1.0),
                                  Step(jpeg=1), Step(crop=(0.4, 0.4, 0.41, 0.41))], ids=str)
def test_the_smallest_images_can_be_seen_through_the_strongest_steps(step):
    for height, width in ((16, 16), (16, 24), (1, 1)):
        assert perceive(torch.rand(1, 3, height, width), (step,)).shape == (1, 3, height, width)


def test_blur_has_the_standard_deviation_it_is_given():
    dot = torch.zeros(1, 3, 61, 41)
    dot[..., 30, 20] = 1
    for sigma in (1.0, 2.0, 4.0):
        found = seen(dot, blur=sigma)[0, 0]
        assert float(found.sum()) == pytest.approx(1, abs=1e-4)
        for axis, centre in ((1, 30), (0, 20)):
            spread = found.sum(axis)
            places = torch.arange(len(spread)) - centre
            assert float((spread * places ** 2).sum()) ** 0.5 == pytest.approx(sigma, rel=0.05)


def test_jpeg_loses_more_with_less_quality():
    dataset = load(DataConfig(image_size=64, test=4), "test")
    images = pixels(dataset).float() / 255
    errors = [float((seen(images, jpeg=quality) - images).abs().mean()) for quality in (95, 50, 5)]
    assert errors[0] < 0.02 and errors[0] < errors[1] < errors[2]


def test_boxes_are_left_top_right_bottom():
    cropped, hidden = seen(IMAGES, crop=(0.25, 0.0, 1.0, 0.5)), seen(IMAGES, occlude=(0.25, 0.0, 1.0, 0.5))
    inside = torch.zeros(48, 36, dtype=torch.bool)
    inside[:24, 9:] = True
    assert torch.equal(cropped[..., inside], IMAGES[..., inside]) and (cropped[..., ~inside] == 0.5).all()
    assert torch.equal(hidden[..., ~inside], IMAGES[..., ~inside]) and (hidden[..., inside] == 0.5).all()
    assert torch.equal(seen(IMAGES, crop=(0.0, 0.0, 1.0, 1.0)), IMAGES)


@pytest.mark.parametrize(("degrees", "green"), [(120.0, (0, 255, 0)), (-120.0, (0, 0, 255)), (180.0, (0, 255, 255))])
def test_hues_turn(degrees, green):
    torch.testing.assert_close(seen(flat(255, 0, 0), rotate_hue=degrees), flat(*green), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen(GREYS, rotate_hue=degrees), GREYS)


def test_hues_turn_as_in_hsv():
    h, s, v = colorsys.rgb_to_hsv(0.7, 0.3, 0.4)
    wanted = torch.tensor(colorsys.hsv_to_rgb((h + 50 / 360) % 1, s, v)) * 255
    torch.testing.assert_close(seen(flat(0.7 * 255, 0.3 * 255, 0.4 * 255), rotate_hue=50.0), flat(*wanted.tolist()),
                               atol=1e-4, rtol=0)


# Severity 1.0 of the tables that Machado, Oliveira and Fernandes publish, which the packages colour-science
# (CVD_MATRICES_MACHADO2010) and DaltonLens 0.1.5 repeat, and 8-bit sRGB that DaltonLens' Simulator_Machado2009 makes of
# some colours. It rounds down, so that there is a difference of 1.
COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (128, 64, 200), (255, 165, 0), (77, 77, 77)]
PUBLISHED = {
    "protan": ([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
               [(108, 95, 0), (254, 229, 0), (0, 88, 254), (0, 98, 204), (195, 171, 0), (77, 77, 77)]),
    "deutan": ([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
               [(163, 144, 0), (238, 214, 58), (0, 61, 251), (0, 98, 197), (216, 192, 13), (77, 76, 77)]),
    "tritan": ([[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
               [(254, 0, 14), (0, 247, 216), (0, 107, 149), (112, 95, 126), (254, 142, 140), (77, 77, 77)]),
}


@pytest.mark.parametrize("kind", PUBLISHED)
def test_colour_blindness_is_that_of_the_published_model(kind):
    matrix, wanted = PUBLISHED[kind]
    assert MACHADO[kind] == matrix
    for colour, other in zip(COLOURS, wanted, strict=True):
        found = seen(flat(*colour), colour_blind=kind) * 255
        torch.testing.assert_close(found, flat(*other) * 255, atol=1.1, rtol=0)


@pytest.mark.parametrize("kind", MACHADO)
def test_the_colour_blind_see_greys_as_they_are(kind):
    torch.testing.assert_close(seen(GREYS, colour_blind=kind), GREYS, atol=2e-4, rtol=0)


def test_red_and_green_are_alike_to_the_red_green_blind_only():
    """A red and a green of one confusion line: far apart to the tritan and to normal eyes."""
    colours = {"red": (170, 100, 60), "green": (116, 116, 62)}

    def apart(kind: str) -> float:
        red, green = (seen(flat(*c), colour_blind=kind) if kind else flat(*c) for c in colours.values())
        return float((red - green).abs().max()) * 255

    assert apart("deutan") < 25 < 45 < min(apart(""), apart("tritan"))


def test_a_cataract_blurs_yellows_and_veils_the_more_the_worse_it_is():
    white, edge = flat(255, 255, 255), torch.zeros(1, 3, 64, 64)
    edge[..., 32:] = 1
    whites = [seen(white, cataract=severity)[0, :, 4, 4] for severity in (0.2, 0.6, 1.0)]
    edges = [seen(edge, cataract=severity)[0, 0, 32] for severity in (0.2, 0.6, 1.0)]
    assert all(red > green > blue for red, green, blue in whites) and whites[0][2] > whites[1][2] > whites[2][2]
    contrasts = [float(row[60] - row[4]) for row in edges]
    steepest = [float(row.diff().max()) for row in edges]
    assert contrasts == sorted(contrasts, reverse=True) and steepest == sorted(steepest, reverse=True)
    assert float(edges[2][4]) > 0.3  # the dark half is lit by the bright one


def test_noise_has_its_strength_and_belongs_to_the_image():
    greys = torch.full((2, 3, 64, 64), 0.5)
    greys[1, 0, 0, 0] = 128.6 / 255  # another image, by one pixel
    found = seen(greys, noise=0.05) - greys
    assert float(found.std()) == pytest.approx(0.05, rel=0.05) and abs(float(found.mean())) < 0.002
    assert float(torch.corrcoef(found.flatten(1))[0, 1]) == pytest.approx(0, abs=0.05)  # drawn anew
    assert torch.equal(seen(greys.flip(0), noise=0.05), seen(greys, noise=0.05).flip(0))
    torch.testing.assert_close(seen(greys, noise=0.1) - greys, 2 * found, atol=1e-6, rtol=0)  # stronger, not other


def test_noise_is_that_of_the_image_whatever_steps_come_before_it():
    """Else the rounding of an earlier step, which differs from batch to batch, would change all of it."""
    images = 0.4 + 0.2 * IMAGES  # so that nothing is cut off
    for before in ((Step(blur=2.0),), (Step(contrast=0.5), Step(jpeg=50))):
        found = perceive(images, (*before, Step(noise=0.03))) - perceive(images, before)
        torch.testing.assert_close(found, seen(images, noise=0.03) - images, atol=1e-6, rtol=0)


def test_downsampling_leaves_so_many_pixels():
    found = seen(IMAGES, downsample=12)  # 12 x 9 of 48 x 36
    assert torch.equal(found[..., ::4, ::4].repeat_interleave(4, 2).repeat_interleave(4, 3), found)
    square = IMAGES[..., :32, :32]
    assert torch.equal(seen(square, downsample=4), perceive(square, "low_resolution"))  # an eighth of the side
    assert torch.equal(seen(IMAGES, downsample=48), IMAGES)


def test_contrast_is_what_is_left_of_it():
    found = seen(IMAGES, contrast=0.3)
    torch.testing.assert_close(found[0].std(), 0.3 * IMAGES[0].std(), rtol=1e-3, atol=0)
    assert seen(IMAGES, contrast=0.0)[0].std() < 1e-6 and torch.equal(seen(IMAGES, contrast=1.0), IMAGES)


def test_a_chain_takes_its_steps_in_their_order():
    half, blurred = Step(crop=(0.0, 0.0, 0.5, 1.0)), Step(blur=3.0)
    assert torch.equal(perceive(IMAGES, (half, blurred)), perceive(perceive(IMAGES, (half,)), (blurred,)))
    assert not torch.allclose(perceive(IMAGES, (half, blurred)), perceive(IMAGES, (blurred, half)), atol=0.01)
    assert torch.equal(perceive(IMAGES, ("grey", half)), perceive(perceive(IMAGES, "grey"), (half,)))
    assert torch.equal(perceive(IMAGES, ("grey",)), perceive(IMAGES, "grey"))


def test_caches_of_names_keep_their_keys_and_every_recipe_has_its_own():
    keys = {name: perception_key(name) for name in ("colour", "grey", "centre_crop")}
    assert keys == {"colour": "b4e58a760922ec10", "grey": "64dec57dda427b73", "centre_crop": "eb8c4d8435168748"}
    recipes = [(Step(blur=3.0),), (Step(blur=3.001),), (Step(downsample=128),), (Step(downsample=256),),
               (Step(noise=0.2),), (Step(noise=0.2), Step(jpeg=5)), (Step(jpeg=5), Step(noise=0.2)), ("colour",)]
    found = [perception_key(recipe) for recipe in recipes]  # some see fixed images of 128 pixels alike, but not others
    assert len({*found, *keys.values()}) == len(found) + len(keys)
    assert found == [perception_key(recipe) for recipe in recipes]


def test_a_listener_sees_through_its_chain(home):
    dataset = load(DataConfig(image_size=32, test=6), "test")
    chain = (Step(blur=2.0), Step(noise=0.1), Step(jpeg=20))
    plain, listener = make_listeners((
        ListenerConfig("plain", clip=str(home.clip)), ListenerConfig("poor", clip=str(home.clip), perception=chain)),
        dataset)
    images = pixels(dataset)
    shown = perceive(images.float() / 255, chain)
    direct = listener.clip.embed_images((shown * 255).round().byte(), "colour")  # what the lens shows, by normal eyes
    torch.testing.assert_close(listener.images, direct, atol=1e-2, rtol=0)
    assert not torch.allclose(listener.images, plain.images, atol=1e-2)
    candidates = torch.arange(6).expand(2, 6)
    assert listener.score(["a red circle", "a star"], candidates).shape == (2, 6)
