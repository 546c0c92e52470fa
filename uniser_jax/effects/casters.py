"""What casts shadows: people, hands, trees, poles, bottles, fences, blinds, windows, walls, as polygons on the ground.

Forms are built upright in units of their own height: x across, y from the contact (0) along the shadow (1). `Ground` lays
them into the frame as a low sun lays a shadow on level ground: turned, sheared, and in perspective. Frame coordinates are
fractions of the image side from the middle of the frame, y downwards.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from uniser_jax.effects import fields

Polygons = list[np.ndarray]  # each [n 2], or [k n 2] for k of n corners


class Cast(NamedTuple):
    """One caster in the frame.

    Args:
      forms: see `mattes.polygons`.
      contact: where caster and shadow meet.
      direction: from there to the far end.
      lit: the polygons are openings, and all around them is in shadow.
    """

    forms: Polygons
    contact: np.ndarray
    direction: np.ndarray
    lit: bool = False

    def turned(self, angle: float) -> "Cast":
        """The shadow in the light of another lamp: turned about the contact."""
        c, s = np.cos(angle), np.sin(angle)
        turn = np.array([[c, s], [-s, c]])
        forms = [(form - self.contact) @ turn + self.contact for form in self.forms]
        return self._replace(forms=forms, direction=self.direction @ turn)


class Ground(NamedTuple):
    """How upright forms are laid down: x -> across, y -> along, in perspective.

    Args:
      contact: of y = 0.
      along: of a unit of y.
      across: of a unit of x.
      perspective: growth with y; positive towards the camera.
    """

    contact: np.ndarray
    along: np.ndarray
    across: np.ndarray
    perspective: float

    @classmethod
    def at(cls, rng: np.random.Generator, contact: np.ndarray, angle: float, size: float) -> "Ground":
        """A shadow that falls in direction `angle`; what stands upright in the picture keeps its feet side by side."""
        along = size * np.array([np.cos(angle), np.sin(angle)])
        turn = angle - np.pi / 2 + np.clip(rng.normal(0, 0.25), -0.5, 0.5)
        across = size * rng.uniform(0.75, 1.1) * np.array([np.cos(turn), np.sin(turn)])
        return cls(contact, along, across, 0.35 * float(np.sin(angle)) * rng.uniform(0.2, 1))

    def lay(self, forms: Polygons, lit: bool = False) -> Cast:
        """Upright forms to the frame."""
        laid = []
        for form in forms:
            scale = 1 / np.maximum(1 - self.perspective * form[..., 1:], 0.3)
            laid.append(self.contact + scale * (form[..., :1] * self.across + form[..., 1:] * self.along))
        return Cast(laid, self.contact, self.along, lit)


def capsules(starts: np.ndarray, ends: np.ndarray, first: np.ndarray, last: np.ndarray, corners: int = 6) -> np.ndarray:
    """Limbs: round-ended bars from `starts` to `ends` [k 2] with radii `first` and `last` [k]; [k 2*corners 2]."""
    forward = ends - starts
    forward = forward / np.maximum(np.hypot(forward[:, :1], forward[:, 1:]), 1e-6)
    side = np.stack([-forward[:, 1], forward[:, 0]], -1)
    turn = np.linspace(-np.pi / 2, np.pi / 2, corners)[:, None, None]
    cap = np.cos(turn) * forward + np.sin(turn) * side
    return np.concatenate([ends + np.asarray(last)[:, None] * cap, starts - np.asarray(first)[:, None] * cap]).swapaxes(
        0, 1
    )


def ellipse(centre: tuple[float, float], radii: tuple[float, float], corners: int = 20) -> np.ndarray:
    """One ellipse, [corners 2]."""
    turn = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    return np.array(centre) + np.stack([radii[0] * np.cos(turn), radii[1] * np.sin(turn)], -1)


def box(left: float, bottom: float, right: float, top: float) -> np.ndarray:
    """One rectangle, [4 2]."""
    return np.array([[left, bottom], [right, bottom], [right, top], [left, top]])


def tufts(rng: np.random.Generator, centres: np.ndarray, radii: np.ndarray, corners: int = 11) -> np.ndarray:
    """Ragged round forms, as bunches of leaves: [k corners 2]."""
    turn = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    ragged = rng.uniform(0.45, 1.2, (len(centres), corners)) * radii[:, None]
    return centres[:, None] + ragged[..., None] * np.stack([np.cos(turn), np.sin(turn)], -1)


# A standing figure of height 1, after the proportions of drawing books (head 1/7.5, hip at a half, fingers at mid thigh).
_ARMS = {  # elbow from the shoulder, hand from the elbow; x outwards
    "down": ((0.03, -0.165), (0.015, -0.15)),
    "away": ((0.09, -0.14), (0.07, -0.13)),
    "hip": ((0.13, -0.13), (-0.10, -0.12)),
    "phone": ((0.10, -0.09), (-0.10, 0.15)),
    "raised": ((0.10, 0.11), (0.02, 0.16)),
    "reach": ((0.15, 0.02), (0.14, 0.05)),
}


def figure(rng: np.random.Generator, arms: tuple[str, str] | None = None) -> Polygons:
    """A person from the feet at y = 0 to the crown at 1, in any everyday pose."""
    kinds = arms or tuple(
        rng.choice(["down", "away", "hip", "phone", "raised", "reach"], 2, p=[0.4, 0.2, 0.15, 0.1, 0.08, 0.07])
    )
    girth, turned, lean = rng.uniform(0.8, 1.25), rng.uniform(0.55, 1.0), rng.normal(0, 0.02)
    stride = rng.uniform(0.02, 0.07) if rng.random() < 0.5 else rng.uniform(0.08, 0.17)
    hip, neck = np.array([0.0, 0.5]), np.array([lean, 0.84])
    sides = np.array([[-1.0, 1.0], [1.0, 1.0]])
    hips, shoulders = hip + sides * [0.045 * turned, 0], neck + sides * [0.105 * turned * girth**0.5, -0.035]
    feet = hip * [1, 0] + sides * [stride, 0] + [rng.normal(0, 0.02), 0.015]
    knees = (hips + feet) / 2 + [rng.normal(0, 0.015), 0.0] + sides * [0, rng.uniform(0, 0.02)]
    toes = feet + np.array([[rng.uniform(-0.07, 0.02), -0.012], [rng.uniform(-0.02, 0.07), -0.012]])
    reach = np.array([_ARMS[kind] for kind in kinds]) * sides[:, None] + rng.normal(0, 0.012, (2, 2, 2))
    elbows = shoulders + reach[:, 0]
    hands = elbows + reach[:, 1]
    starts = np.concatenate([hips, knees, feet, shoulders, elbows, [hip, neck, shoulders[0]]])
    ends = np.concatenate([knees, feet, toes, elbows, hands, [[lean, 0.72], [lean * 1.2, 0.9], shoulders[1]]])
    wide = np.array([0.06, 0.06, 0.04, 0.04, 0.022, 0.022, 0.034, 0.034, 0.026, 0.026, 0.09, 0.035, 0.04])
    narrow = np.array([0.042, 0.042, 0.024, 0.024, 0.014, 0.014, 0.026, 0.026, 0.02, 0.02, 0.105, 0.03, 0.04])
    thick = girth * np.where(np.arange(13) == 10, turned, 1)
    head = ellipse((lean * 1.4, 0.93), (0.05 * rng.uniform(0.9, 1.25), 0.068))
    return [capsules(starts, ends, wide * thick, narrow * thick), head, *_belongings(rng, hands, hip, lean, turned)]


def _belongings(rng: np.random.Generator, hands: np.ndarray, hip: np.ndarray, lean: float, turned: float) -> Polygons:
    """Palms, and now and then a coat, a hat, a bag, a rucksack, long hair."""
    parts = [ellipse(tuple(hand), (0.022, 0.026), 10) for hand in hands]
    coat, hat, bag, rucksack, hair = rng.random(5) < (0.35, 0.25, 0.3, 0.15, 0.3)
    if coat:
        hem, flare = rng.uniform(0.2, 0.42), rng.uniform(0.09, 0.17)
        parts.append(np.array([[lean - 0.08, 0.7], [lean + 0.08, 0.7], [flare, hem], [-flare, hem]]))
    if hat:
        brim, crown = rng.uniform(0.06, 0.13), rng.uniform(0.96, 1.03)
        parts += [ellipse((lean * 1.4, 0.955), (brim, 0.012)), box(lean * 1.4 - 0.05, 0.95, lean * 1.4 + 0.05, crown)]
    if bag:
        (x, y), wide, deep = hands[int(rng.integers(2))], rng.uniform(0.04, 0.09), rng.uniform(0.08, 0.16)
        strap = box(x - 0.006, y - 0.06, x + 0.006, y)
        parts += [box(x - wide, y - 0.05 - deep, x + wide, y - 0.05), strap]
    if rucksack:
        parts.append(ellipse((float(rng.choice([-1, 1])) * 0.1 * (1.3 - turned) + lean, 0.7), (0.11, 0.13)))
    if hair:
        parts.append(np.array([[lean - 0.06, 0.95], [lean + 0.06, 0.95], [lean + 0.075, 0.82], [lean - 0.075, 0.82]]))
    return parts


def person(rng: np.random.Generator, size: float, angle: float) -> Cast:
    """One to three people, their feet in the frame, all shadows in the same direction."""
    heading = np.array([np.cos(angle), np.sin(angle)])
    ground = Ground.at(rng, rng.normal(0, 0.16, 2) - 0.4 * size * heading, angle, size)
    forms = figure(rng)
    for _ in range(fields.pick(rng, (0.65, 0.25, 0.1))):
        step = np.array([rng.choice([-1, 1]) * rng.uniform(0.25, 0.7), rng.normal(0, 0.15)])
        height = rng.uniform(0.55, 1.1)
        forms = forms + [form * height + step for form in figure(rng)]
    return ground.lay(forms)


def photographer(rng: np.random.Generator, size: float, angle: float) -> Cast:
    """One's own shadow from beyond the edge of the frame, often with a camera at the eyes or an arm in the air."""
    poses = (("phone", "phone"), ("phone", "down"), ("raised", "phone"), ("raised", "raised"), ("away", "down"))
    forms = figure(rng, poses[fields.pick(rng, (0.4, 0.15, 0.1, 0.1, 0.25))])
    if rng.random() < 0.4:
        forms.append(box(-0.045, 0.9, 0.045, rng.uniform(0.94, 0.99)) + [rng.normal(0, 0.03), 0])
    heading = np.array([np.cos(angle), np.sin(angle)])
    shown = rng.uniform(0.3, 0.85)  # how far it reaches into the frame
    edge = 0.5 / float(np.abs(heading).max())  # from the middle of the frame
    ground = Ground.at(rng, np.zeros(2), angle, max(size * rng.uniform(1.2, 2.4), 1.6 * shown))
    aside = rng.normal(0, 0.13) * heading[::-1] * [-1, 1]
    contact = (shown - edge) * heading + aside - ground.along / (1 - ground.perspective)
    if rng.random() < 0.2:
        step = np.array([rng.choice([-1, 1]) * rng.uniform(0.35, 0.6), rng.normal(0, 0.05)])
        height = rng.uniform(0.8, 1.05)
        forms = forms + [form * height + step for form in figure(rng)]
    return ground._replace(contact=contact).lay(forms)


def hand(rng: np.random.Generator, size: float, angle: float) -> Cast:
    """A forearm from the edge of the frame with an open, pointing or closed hand, or one that holds a phone."""
    spread, thick = rng.uniform(0.02, 0.16), rng.uniform(0.85, 1.2)
    lengths = np.array([0.2, 0.23, 0.21, 0.17]) * _fingers(rng)
    turn = np.linspace(-1.5, 1.5, 4) * spread
    knuckles = np.array([0.0, 1.0]) + np.stack([np.linspace(-0.075, 0.075, 4), np.full(4, 0.02)], -1)
    tips = knuckles + lengths[:, None] * np.stack([np.sin(turn), np.cos(turn)], -1)
    thumb = np.array([[-0.07, 0.86]]), np.array([[-0.17 * rng.uniform(0.6, 1.2), 0.98]])
    starts = np.concatenate([knuckles, thumb[0], [[0, -1.2], [0, 0.84]]])
    ends = np.concatenate([tips, thumb[1], [[0, 0.82], [0, 0.98]]])
    wide = thick * np.array([0.024, 0.025, 0.025, 0.022, 0.032, 0.1, 0.075])
    narrow = thick * np.array([0.019, 0.02, 0.02, 0.017, 0.024, 0.055, 0.09])
    forms = [capsules(starts, ends, wide, narrow)]
    if rng.random() < 0.25:
        forms.append(box(-0.09, 0.9, 0.09, 1.22) + [rng.normal(0, 0.03), 0])
    heading = np.array([np.cos(angle), np.sin(angle)])
    reach = size * rng.uniform(0.9, 1.8)
    return Ground.at(rng, rng.normal(0, 0.18, 2) - reach * heading, angle, reach).lay(forms)


def _fingers(rng: np.random.Generator) -> np.ndarray:
    """How far each finger is stretched: open, pointing, or a fist."""
    kind = rng.random()
    if kind < 0.4:
        return rng.uniform(0.8, 1.0, 4)
    return np.array([1.0, 0.25, 0.2, 0.2]) if kind < 0.6 else rng.uniform(0.15, 0.35, 4)


def tree(rng: np.random.Generator, size: float, angle: float) -> Cast:
    """Trunk, branches by repeated forking, and foliage, or none in winter."""
    starts, ends = np.array([[0.0, -0.02]]), np.array([[rng.normal(0, 0.02), rng.uniform(0.22, 0.4)]])
    length, radius = rng.uniform(0.17, 0.25), rng.uniform(0.02, 0.035)
    heading, forms = np.array([rng.normal(0, 0.08)]), []
    for _ in range(5):
        forms.append(capsules(starts, ends, np.full(len(starts), radius), np.full(len(starts), radius * 0.72), 3))
        forks = 3 if len(ends) < 30 else 2
        heading = (heading[:, None] + rng.normal(0, 0.5, (len(ends), forks))).ravel()
        starts = np.repeat(ends, forks, 0)
        reach = length * rng.uniform(0.6, 1.15, len(starts))
        ends = starts + reach[:, None] * np.stack([np.sin(heading), np.cos(heading)], -1)
        length, radius = length * 0.72, radius * 0.58
    if rng.random() < 0.75:
        count = int(rng.integers(80, 260))
        tips = starts[rng.integers(0, len(starts), count)] + rng.normal(0, 0.05, (count, 2))
        forms.append(tufts(rng, tips, rng.uniform(0.012, 0.05, count)))
    shift = np.array([np.cos(angle), np.sin(angle)]) * rng.uniform(0.3, 0.8)
    return Ground.at(rng, rng.normal(0, 0.2, 2) - shift, angle, size * rng.uniform(0.9, 1.6)).lay(forms)


def pole(rng: np.random.Generator, size: float, angle: float) -> Cast:
    """A street lamp, a sign on a post, or a mast with wires."""
    thick = rng.uniform(0.008, 0.03)
    forms = [box(-thick, -0.02, thick, 1.0)]
    kind = int(rng.integers(3))
    if kind == 0:
        arm = rng.choice([-1, 1]) * rng.uniform(0.0, 0.3)
        ends = np.array([[arm, 1.03]])
        forms += [capsules(np.array([[0, 1.0]]), ends, np.array([thick]), np.array([thick]))]
        forms += [ellipse((arm, 1.03), (rng.uniform(0.05, 0.09), rng.uniform(0.03, 0.09)))]
    elif kind == 1:
        corners, turn = int(rng.choice([3, 4, 4, 8, 20])), rng.uniform(0, np.pi)
        wide = rng.uniform(0.08, 0.22)
        around = turn + np.linspace(0, 2 * np.pi, corners, endpoint=False)
        forms += [np.array([0.0, 0.95]) + wide * np.stack([np.cos(around), np.sin(around)], -1)]
    else:
        heights = rng.uniform(0.75, 1.0, int(rng.integers(1, 4)))
        forms += [box(-0.2, heights[0], 0.2, heights[0] + 0.02)]
        forms += [box(-4.0, height, 4.0, height + 0.008) for height in heights]
    heading = np.array([np.cos(angle), np.sin(angle)])
    return Ground.at(rng, rng.normal(0, 0.2, 2) - 0.4 * heading, angle, size * 1.3).lay(forms)


def polygon(rng: np.random.Generator, size: float, angle: float) -> Cast:
    """One to three things with straight sides."""
    heading, forms = np.array([np.cos(angle), np.sin(angle)]), []
    for _ in range(1 + fields.pick(rng, (0.7, 0.2, 0.1))):
        around = np.sort(rng.uniform(0, 2 * np.pi, 5))
        radii = rng.uniform(0.3, 0.6, (5, 1)) * rng.uniform(0.6, 1)
        forms.append(radii * np.stack([np.cos(around), np.sin(around)], -1) + [rng.normal(0, 0.3), 0.5])
    return Ground.at(rng, rng.normal(0, 0.2, 2) - 0.5 * size * heading, angle, size).lay(forms)


def bottle(rng: np.random.Generator, size: float, angle: float) -> Cast:
    """A bottle or a jar, standing, or held with its neck down."""
    wide, neck = rng.uniform(0.11, 0.2), rng.uniform(0.035, 0.08)
    shoulder, top = rng.uniform(0.5, 0.75), rng.uniform(0.78, 0.9)
    slope = np.linspace(0, np.pi, 8)
    round_ = np.stack(
        [neck + (wide - neck) * (0.5 + 0.5 * np.cos(slope)), shoulder + (top - shoulder) * slope / np.pi], 1
    )
    lip = neck + rng.uniform(0.0, 0.015)
    side = np.concatenate([[[wide - 0.03, 0], [wide, 0.03]], round_, [[neck, 0.95], [lip, 0.95], [lip, 1.0]]])
    outline = np.concatenate([side, side[::-1] * [-1, 1]])
    if rng.random() < 0.4:
        outline = [0, 1] + outline * [1, -1]
    heading = np.array([np.cos(angle), np.sin(angle)])
    return Ground.at(rng, rng.normal(0, 0.2, 2) - 0.5 * size * heading, angle, size).lay([outline])


def railing(rng: np.random.Generator, size: float, angle: float) -> Cast:
    """Posts between two rails, pickets, or a mesh, across the whole frame."""
    count, wide = int(rng.integers(9, 36)), rng.uniform(0.12, 0.5)
    left = (np.arange(count) / count - 0.5) * 6
    bar = wide * 6 / count / (1 if wide > 0.35 else 2)
    lower, upper, kind = rng.uniform(0, 0.12), rng.uniform(0.9, 1.0), rng.random()
    slant = 0.9 if kind < 0.15 else 0.0
    corners = [[0, 0], [bar, 0], [bar + slant, 1], [slant + bar / 2, 1.08 if kind > 0.7 else 1], [slant, 1]]
    bars = np.array(corners) + np.stack([left, np.zeros(count)], -1)[:, None]
    rail = rng.uniform(0.015, 0.05)
    forms = [bars, box(-4, lower, 4, lower + rail), box(-4, upper - 2 * rail, 4, upper)]
    if slant:
        forms.append(bars * [-1, 1] + [slant, 0])
    heading = np.array([np.cos(angle), np.sin(angle)])
    return Ground.at(rng, rng.normal(0, 0.12, 2) - 0.5 * size * heading, angle, size * 1.2).lay(forms)


def blinds(rng: np.random.Generator, size: float, angle: float) -> Cast:
    """Sun between slats: bright bands in an opening, all else in shadow."""
    count, duty = int(rng.integers(6, 22)), rng.uniform(0.3, 0.65)
    wide = rng.uniform(0.4, 1.6)
    bottoms = (np.arange(count) + rng.normal(0, 0.04, count)) / count * 2 - 1
    bands = (
        np.stack([box(-wide, 0, wide, duty * 2 / count)] * count) + np.stack([np.zeros(count), bottoms], -1)[:, None]
    )
    cords = [-wide * 0.6, wide * 0.6] if rng.random() < 0.5 else []
    forms = [bands * [1, 1]] if not cords else [np.concatenate([_piece(bands, a, b) for a, b in _between(cords, wide)])]
    return _opening(rng, size, angle).lay(forms, lit=True)


def window(rng: np.random.Generator, size: float, angle: float) -> Cast:
    """Sun through one or two windows: everything is in shadow but the panes."""
    columns, rows = (int(n) for n in rng.integers(1, 5, 2))
    bar, tall, arched = rng.uniform(0.02, 0.09), rng.uniform(0.7, 1.3), rng.random() < 0.15
    panes = np.stack([box(i + bar, j + bar, i + 1 - bar, j + 1 - bar) for i in range(columns) for j in range(rows)])
    panes = (panes / [columns, rows] - 0.5) * [1.2, 1.5 * tall]
    forms = [panes]
    if arched:
        turn = np.linspace(0, np.pi, 16)
        top = 0.75 * tall
        forms.append(np.stack([0.58 * np.cos(turn), top + 0.05 + 0.5 * np.sin(turn)], -1))
    if rng.random() < 0.35:
        forms += [form + [rng.choice([-1, 1]) * rng.uniform(1.3, 1.7), 0] for form in list(forms)]
    return _opening(rng, size, angle).lay(forms, lit=True)


def edge(rng: np.random.Generator, size: float, angle: float) -> Cast:
    """A building beyond the frame: a straight wall, steps, gables, chimneys, a hedge."""
    kind, level = rng.random(), rng.uniform(-0.3, 0.25)
    if kind < 0.4:
        line = np.array([[-3, level], [3, level]])
    elif kind < 0.7:
        across = np.sort(rng.uniform(-1, 1, int(rng.integers(1, 5))))
        heights = level + rng.normal(0, 0.15, len(across) + 1)
        line = np.stack([np.repeat(np.concatenate([[-3], across, [3]]), 2)[1:-1], np.repeat(heights, 2)], -1)
    else:
        peak, wide, tall = rng.uniform(-0.4, 0.4), rng.uniform(0.3, 0.9), rng.uniform(0.15, 0.5)
        line = np.array([[-3, level], [peak - wide, level], [peak, level + tall], [peak + wide, level], [3, level]])
    forms = [np.concatenate([line, [[3, -4], [-3, -4]]])]
    for _ in range(fields.pick(rng, (0.6, 0.25, 0.15))):
        x, wide = rng.uniform(-0.6, 0.6), rng.uniform(0.03, 0.09)
        forms.append(box(x - wide, level - 0.3, x + wide, level + rng.uniform(0.1, 0.4)))
    if rng.random() < 0.2:
        count = int(rng.integers(60, 160))
        centres = np.stack([rng.uniform(-1.2, 1.2, count), level + rng.normal(0, 0.08, count)], -1)
        forms.append(tufts(rng, centres, rng.uniform(0.02, 0.09, count)))
    heading = np.array([np.cos(angle), np.sin(angle)])
    ground = Ground(np.zeros(2), heading, heading[::-1] * [-1, 1], 0.25 * float(np.sin(angle)))
    return ground.lay(forms)._replace(contact=-0.8 * heading, direction=1.2 * heading)


def _opening(rng: np.random.Generator, size: float, angle: float) -> Ground:
    centre = rng.normal(0, 0.13, 2)
    return Ground.at(rng, centre, angle, 0.25 + 0.45 * size)


def _between(cords: list[float], wide: float) -> list[tuple[float, float]]:
    ends = [-wide, *cords, wide]
    return [(a + 0.012, b - 0.012) for a, b in itertools.pairwise(ends)]


def _piece(bands: np.ndarray, left: float, right: float) -> np.ndarray:
    return np.stack([np.clip(bands[..., 0], left, right), bands[..., 1]], -1)


FORMS: dict[str, Callable[[np.random.Generator, float, float], Cast]] = {
    "person": person,
    "photographer": photographer,
    "hand": hand,
    "tree": tree,
    "pole": pole,
    "polygon": polygon,
    "bottle": bottle,
    "railing": railing,
    "blinds": blinds,
    "window": window,
    "edge": edge,
}
