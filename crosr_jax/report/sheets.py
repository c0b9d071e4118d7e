"""Pictures made of images: samples, reconstructions, mistakes.

N samples, K known classes.
"""

import numpy as np

from crosr_jax import types
from crosr_jax.report import material as material_lib
from crosr_jax.report import strips, style, words

Material = material_lib.Material
_CLASSES = 12  # rows of the sheet of samples, at most


def samples(
  material: Material, rng: np.random.Generator
) -> material_lib.Picture | None:
  """Known test samples by class, and unknown ones, as the net sees them."""
  label = material.features['test'].label
  present = np.unique(label[label >= 0])
  # Evenly spread over the classes, ends included.
  spread = np.linspace(0, len(present) - 1, min(_CLASSES, len(present)))
  shown = present[spread.astype(int)]
  rows = []
  for k in shown:
    chosen = material_lib.choose(
      rng, np.flatnonzero(label == k), strips.COLUMNS
    )
    image = material.image['test'][chosen]
    title = style.label(material.class_names[k])
    rows.append(strips.Strip(title, image, colour=style.KNOWN))
  for i, name in enumerate(material_lib.unknown_names(material)):
    image = _some(material, rng, name, 2 * strips.COLUMNS)
    for part in strips.parts(len(image)):
      title = '' if part.start else style.label(name)
      rows.append(
        strips.Strip(title, image[part], colour=style.unknown_colour(i))
      )
  rest = ''
  if len(shown) < len(material.class_names):
    rest = f' {len(shown)} of {len(material.class_names):,} classes are shown.'
  return _picture(
    'samples',
    'Samples',
    'Known test samples, one row per class (blue titles), then unknown ones, '
    'exactly as they reach the net. Look for unknowns that differ in '
    'brightness, framing or smoothness alone: they are easy for the wrong '
    f'reason.{rest}',
    rows,
  )


def reconstructions(
  material: Material, rng: np.random.Generator
) -> material_lib.Picture | None:
  """Inputs above what the net makes of them; none without a lateral."""
  if material.reconstruct is None:
    return None
  sets = [('test', 'known test', style.KNOWN, 2 * strips.COLUMNS)]
  for i, name in enumerate(material_lib.unknown_names(material)):
    colour = style.unknown_colour(i)
    sets.append((name, style.label(name), colour, strips.COLUMNS))
  rows = []
  for name, title, colour, count in sets:
    image = _some(material, rng, name, count)
    made = material.reconstruct(image)
    for part in strips.parts(len(image)):
      rows.append(strips.Strip(title, image[part], colour=colour))
      rows.append(
        strips.Strip('reconstruction', made[part], colour=style.FAINT)
      )
  return _picture(
    'reconstructions',
    'Reconstructions',
    'Each sample above what the net rebuilds from its codes. What is lost '
    'for unknown samples but kept for known ones is what the latents can '
    'tell apart.',
    rows,
  )


def counterfactuals(
  material: Material, rng: np.random.Generator
) -> material_lib.Picture | None:
  """Training images above what was made of them; none where nothing was."""
  if material.generated is None:
    return None
  found = material.generated
  everything = np.arange(len(found.label))
  chosen = material_lib.choose(rng, everything, 3 * strips.COLUMNS)
  chosen = chosen[np.argsort(found.label[chosen], kind='stable')]
  rows = []
  for part in strips.parts(len(chosen)):
    mine = chosen[part]
    classes = tuple(
      style.label(material.class_names[k], 10) for k in found.label[mine]
    )
    rows += [
      strips.Strip('training image', found.image[mine], colour=style.KNOWN),
      strips.Strip(
        'reconstruction', found.reconstruction[mine], colour=style.FAINT
      ),
      strips.Strip(
        'counterfactual,\nnear class',
        found.made[mine],
        classes,
        style.unknown_colour(0),
      ),
    ]
  return _picture(
    'counterfactuals',
    'Counterfactual images',
    'Training images, what the generator rebuilds from their codes, and what '
    'the search made of them: images near by that the classifier finds to be '
    'none of its classes, which the net was then trained on as unknown. They '
    'should look like the data, but like no class; where one still looks like '
    'its class, the net was taught to reject it.',
    rows,
  )


def mistakes(material: Material) -> material_lib.Picture | None:
  """The worst errors of the lead method, each with what it was taken for."""
  method = material_lib.lead(material.scores)
  rows = []
  for i, name in enumerate(material_lib.unknown_names(material)):
    answer = material.decided[name]
    title = f'{style.label(name)}\naccepted as'
    colour = style.unknown_colour(i)
    rows.append(
      errors(material, name, answer != types.UNKNOWN, answer, title, colour)
    )
  wrong = material.decided['test'] == types.UNKNOWN
  label = material.features['test'].label
  title = 'known, rejected;\ntrue class'
  rows.append(errors(material, 'test', wrong, label, title, style.KNOWN))
  return _picture(
    'mistakes',
    'Mistakes',
    f'The worst errors of {words.method_title(method)}, worst first: '
    'unknown samples accepted with the lowest unknown scores, '
    'under each the class it was taken for; known test samples rejected with '
    'the highest, under each its true class; and the score. A set without a '
    'row has no such error.',
    [row for row in rows if len(row.image)],
  )


def errors(
  material: Material,
  name: str,
  wrong: np.ndarray,
  classes: np.ndarray,
  title: str,
  colour: str,
) -> strips.Strip:
  """The samples of a set that are wrong [N], with a class [N] under each."""
  score = material.scores[material_lib.lead(material.scores)][name]
  badness = score.unknown_score * (1 if name == 'test' else -1)
  rows = np.flatnonzero(wrong)
  rows = rows[np.argsort(-badness[rows], kind='stable')][: strips.COLUMNS]
  captions = [
    f'{style.label(material.class_names[classes[row]], 10)}\n'
    f'{number(score.unknown_score[row])}'
    for row in rows
  ]
  return strips.Strip(
    title, material.image[name][rows], tuple(captions), colour
  )


def number(score: float) -> str:
  """A score in few letters: three digits, an exponent where it is huge."""
  return f'{score:.3g}'.replace('e+', 'e').replace('-', '−')


def _some(
  material: Material, rng: np.random.Generator, name: str, count: int
) -> np.ndarray:
  image = material.image[name]
  return image[material_lib.choose(rng, np.arange(len(image)), count)]


def _picture(
  name: str, title: str, caption: str, rows: list[strips.Strip]
) -> material_lib.Picture | None:
  if not rows:
    return None
  return material_lib.Picture(
    name, title, caption, style.png(strips.sheet(rows))
  )
