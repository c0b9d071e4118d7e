"""Picture of the samples: t-SNE of logits and of activation vectors.

N samples, K known classes, D activation width.
"""

import numpy as np
import threadpoolctl  # type: ignore[import-untyped]
from matplotlib import axes, patheffects
from sklearn import manifold

from crosr_jax.report import material as material_lib
from crosr_jax.report import style

Material = material_lib.Material
_CLASSES = 20  # drawn, at most: more can be told apart neither by hue nor name
_CROSSES = ('x', '+', '1', '|', '_', '2')
_FEWEST = 6  # points of a map


def embedding(
  material: Material, rng: np.random.Generator, *, samples: int, seed: int
) -> material_lib.Picture | None:
  """t-SNE of logits alone, and of the activation vector where it is more."""
  k = len(material.class_names)
  classes = np.linspace(0, k - 1, min(k, _CLASSES)).astype(int)
  rows = _balanced(material, rng, classes, samples)
  if sum(map(len, rows.values())) < _FEWEST:
    return None
  logits = [material.features[name].logits[i] for name, i in rows.items()]
  joint = [material.activation[name][i] for name, i in rows.items()]
  shown, added = [('Logits y alone', logits)], ''
  latent = material.features['test'].latent.shape[1]
  if more := joint[0].shape[1] - logits[0].shape[1]:
    has_error = more > latent
    named = '[y, z, log error]' if has_error else '[y, z]'
    shown.append((f'Activation vector {named}', joint))
    added = 'codes z and the reconstruction error' if has_error else 'codes z'
  fig, grid = style.panels(len(shown), width=5.0, height=4.7)
  for ax, (title, parts) in zip(grid, shown, strict=True):
    point = place(np.concatenate(parts), seed)
    known, *unknown = np.split(point, np.cumsum([len(x) for x in parts])[:-1])
    label = material.features['test'].label[rows['test']]
    _draw_known(ax, known, label, classes, material.class_names)
    for i, (mine, name) in enumerate(zip(unknown, list(rows)[1:], strict=True)):
      ax.plot(*mine.T, **_cross(i), label=style.label(name, 30), zorder=3)
    ax.set_title(title)
    ax.set(xticks=[], yticks=[])
  handles = grid[0].get_legend_handles_labels()
  fig.legend(*handles, loc='outside lower center', ncols=3)
  return material_lib.Picture(
    'map',
    'Map of the samples',
    _caption(rows, classes, k, added),
    style.png(fig),
  )


def _caption(
  rows: dict, classes: np.ndarray, num_classes: int, added: str
) -> str:
  count = sum(map(len, rows.values()))
  some = ''
  if len(classes) < num_classes:
    some = f' {len(classes)} of {num_classes:,} known classes are drawn.'
  if added:
    added = (
      ' Crosses that leave the clusters on the right but not on the left are '
      f'what {added} add, and that each coordinate has its own unit there.'
    )
  return (
    f't-SNE of {count:,} samples: known test samples coloured by class, '
    f'unknown ones as dark crosses.{added} Distances between far clusters mean '
    f'nothing.{some}'
  )


def _balanced(
  material: Material,
  rng: np.random.Generator,
  classes: np.ndarray,
  samples: int,
) -> dict[str, np.ndarray]:
  """Row numbers of 'test' (of those classes) and of each unknown set."""
  names = material_lib.unknown_names(material)
  # A third for the classes, however many sets there are.
  known = max(1, samples // min(1 + len(names), 3))
  share = max(1, (samples - known) // max(len(names), 1))
  label = material.features['test'].label
  rows = {'test': np.flatnonzero(np.isin(label, classes))}
  rows |= {name: np.arange(len(material.activation[name])) for name in names}
  return {
    name: material_lib.choose(rng, where, known if name == 'test' else share)
    for name, where in rows.items()
  }


def place(points: np.ndarray, seed: int) -> np.ndarray:
  """t-SNE of [N, D] -> [N, 2]; all in one place where they do not differ."""
  points = np.asarray(points, np.float64)
  if not np.ptp(points, axis=0).any():
    return np.zeros((len(points), 2))
  # Below 1, so that squared distances of huge activations stay finite.
  points = points / np.abs(points).max()
  tsne = manifold.TSNE(
    init='pca',
    perplexity=min(30.0, (len(points) - 1) / 3),
    max_iter=500,
    random_state=seed,
  )
  # One thread: the same map on any number of cores, and threads that wait for
  # a busy core make it ten times slower, not faster.
  with threadpoolctl.threadpool_limits(1):
    return tsne.fit_transform(points)


def _draw_known(ax: axes.Axes, point, label, classes, class_names) -> None:
  """Draws points [N, 2] of labels [N], and each class's name in its midst."""
  few = len(classes) <= 10
  halo = patheffects.withStroke(linewidth=2.5, foreground='white')
  for k, colour in zip(classes, style.class_colours(len(classes)), strict=True):
    mine = point[label == k]
    if len(mine) == 0:
      continue
    ax.scatter(mine[:, 0], mine[:, 1], s=11, color=[colour], linewidth=0)
    x, y = np.median(mine, axis=0)
    ax.text(
      float(x),
      float(y),
      style.label(class_names[k], 12 if few else 8),
      ha='center',
      va='center',
      fontsize=8 if few else 7,
      weight='bold',
      zorder=4,
      path_effects=[halo],
    )


def _cross(index: int) -> dict:
  """Marker of an unknown set: its colour, darkened, as classes are not."""
  return {
    'color': style.dark(style.unknown_colour(index)),
    'marker': _CROSSES[index % len(_CROSSES)],
    'linestyle': '',
    'markersize': 4.5,
    'markeredgewidth': 0.8,
    'alpha': 0.8,
  }
