"""Counterfactual images: unknowns made of known training images alone.

B batch, N training samples, M generated images, H x W pixels, C channels,
K known classes, L latent width.

Neal et al. 2018, "Open Set Learning with Counterfactual Images": an encoder E,
a generator G and a Wasserstein critic D learn to rebuild the training images;
then, from the code E(x) of a training image x, gradient steps look for

  z* = argmin_z  weight * |z - E(x)|^2 + log(1 + sum_i exp C(G(z))_i)

with C a K-way classifier, and G(z*) is an image close to x that C finds to be
none of its classes. A second classifier is trained on the training images and
on these, labelled K.

Three stages, each resumed from where it is, in <workdir>/counterfactual:
  classifier/   C, trained by `train.fit_all` as every classifier here
  gan/          E, G and D, with checkpoints of their own
  images.npz    the images G(z*), and what they were made from

Where this departs from the publication: C is trained by cross-entropy, as the
classifier it is compared with, and not one class against the rest. Its logits
then sum to about 0, log(1 + sum exp) ends near log(1 + K) instead of 0, and is
lowest where no class stands out all the same.

The GAN and the search take the steps they are given, and see training images
alone. The two classifiers do likewise, or keep the checkpoint that is best on
the held-out known part where train.keep says so. What augmentation costs is
told by the accuracy on that part.
"""

import functools
import hashlib
import io
import logging
import pathlib
import time
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from crosr_jax import (
  feed,
  files,
  loop,
  models,
  optimizer,
  progress,
  sharding,
  train,
  types,
)
from crosr_jax.data import batches, splits
from crosr_jax.models import counterfactual as nets_lib

Array = jax.Array
Params = dict[str, Any]

_FOLDER = 'counterfactual'
_WORDS = loop.Words(
  'GAN',
  ('critic', 'penalty', 'reconstruction'),
  'Lower counterfactual.learning_rate',
)


class GanState(NamedTuple):
  """All that a step of the GAN changes."""

  step: Any  # [] int32, steps taken
  params: Params  # of encoder and generator
  critic: Params
  opt_state: Any  # of params
  critic_opt_state: Any


class Images(NamedTuple):
  """What the search made; rows correspond."""

  source: np.ndarray  # [M] rows of the training samples, rising
  reconstruction: np.ndarray  # [M, H, W, C] uint8, G(E(x))
  image: np.ndarray  # [M, H, W, C] uint8, G(z*)
  before: np.ndarray  # [M] float32, log(1 + sum exp C) at E(x)
  after: np.ndarray  # [M] float32, at z*
  distance: np.ndarray  # [M] float32, |z* - E(x)|^2


class Walk(NamedTuple):
  """Where the search is, for each of B codes on the unit sphere."""

  start: Array  # [B, L] E(x)
  code: Array  # [B, L] not yet looked at
  best: Array  # [B, L] of those that were
  least: Array  # [B] objective at `best`
  term: Array  # [B] log(1 + sum exp C) there


class Generated(NamedTuple):
  """Everything of the stages that a run goes on with."""

  images: Images
  select_accuracy: float  # of C
  seconds: dict[str, float]  # by stage, over all sessions


def check_fields(**fields: Any) -> None:
  """Raises a UsageError for a field of the section that cannot be used."""
  for name, low in (
    ('count', 0),
    ('gan_steps', 1),
    ('batch_size', 1),
    ('latent_width', 2),
    ('width', 1),
    ('critic_steps', 1),
    ('search_steps', 1),
  ):
    if fields[name] < low:
      raise types.UsageError(
        f'counterfactual.{name} must be at least {low}, got {fields[name]}'
      )
  for name in ('learning_rate', 'search_rate'):
    # Written so that NaN fails too.
    if not 0 < fields[name] < np.inf:
      raise types.UsageError(
        f'counterfactual.{name} must be above 0 and finite, got {fields[name]}'
      )
  for name in (
    'gradient_penalty',
    'reconstruction_weight',
    'distance_weight',
  ):
    if not 0 <= fields[name] < np.inf:
      raise types.UsageError(
        f'counterfactual.{name} must be at least 0 and finite, got '
        f'{fields[name]}'
      )


def suits(data_name: str) -> bool:
  """Whether unknowns can be generated of a data set: of images in memory."""
  return data_name != 'folder'


def generate(
  classifier: models.Net,
  samples: splits.Labelled,
  select: splits.Labelled,
  workdir: pathlib.Path,
  *,
  seed: int,
  parallel: str,
  training: Mapping[str, Any],
  count: int,
  gan_steps: int,
  batch_size: int,
  latent_width: int,
  width: int,
  learning_rate: float,
  critic_steps: int,
  gradient_penalty: float,
  reconstruction_weight: float,
  search_steps: int,
  search_rate: float,
  distance_weight: float,
  steps_per_dispatch: int = 0,
  data_on_device: str = 'auto',
) -> Generated:
  """Runs the three stages, or what is left of them.

  Args:
    classifier: C, without parameters; K outputs.
    samples: known training samples: all that the GAN and the search see.
    select: held-out known samples whose accuracy C's log tells.
    workdir: of the run; the stages lie in a folder of it.
    seed: of initialisation, order, and the choice of images.
    parallel: see sharding.engine.
    training: fields of `train.fit`, for C; its log and checkpoint intervals are
      the GAN's too.
    count: images to generate, one from each of so many training images; more
      than there are means all.
    gan_steps: updates of E and G.
    batch_size: of the GAN over all devices, and of the search.
    latent_width: L.
    width: channels of the first convolution of E and D, the last ones of G.
    learning_rate: of Adam, for all three.
    critic_steps: updates of D before each of E and G, on the same images.
    gradient_penalty: its weight in the loss of D.
    reconstruction_weight: of the mean absolute error in the loss of E and G.
    search_steps: codes that are tried from each image, E(x) among them.
    search_rate: length of a gradient step, before the code is put back on the
      sphere.
    distance_weight: of |z - E(x)|^2.
    steps_per_dispatch: see feed.build.
    data_on_device: see feed.build.

  Raises:
    ValueError: for a field that cannot be used.
    DivergedError: where a training diverges.
  """
  field = 'counterfactual.batch_size'
  sharding.check_even(field, batch_size)
  batches.check_size(field, batch_size, len(samples.label))
  folder = workdir / _FOLDER
  logging.info('training the classifier that the search is led by')
  trained = train.fit_all(
    classifier,
    samples,
    select,
    folder / 'classifier',
    seed=seed,
    parallel=parallel,
    steps_per_dispatch=steps_per_dispatch,
    data_on_device=data_on_device,
    **training,
  )
  nets = nets_lib.build(
    samples.image.shape[1:], latent_width=latent_width, width=width
  )
  logging.info('training encoder, generator and critic')
  gan = fit(
    nets,
    samples,
    folder / 'gan',
    seed=seed,
    parallel=parallel,
    steps_per_dispatch=steps_per_dispatch,
    data_on_device=data_on_device,
    num_steps=gan_steps,
    batch_size=batch_size,
    learning_rate=learning_rate,
    critic_steps=critic_steps,
    gradient_penalty=gradient_penalty,
    reconstruction_weight=reconstruction_weight,
    **{
      name: training[name]
      for name in ('log_every', 'checkpoint_every', 'keep_checkpoints')
    },
  )
  source = _chosen(len(samples.label), count, seed)
  images, seconds = _kept(
    folder / 'images.npz',
    functools.partial(
      search,
      nets,
      classifier,
      gan.state.params,
      trained.state.variables,
      samples.image,
      source,
      batch_size=batch_size,
      search_steps=search_steps,
      search_rate=search_rate,
      distance_weight=distance_weight,
    ),
    # All that the images follow from.
    key=_digest(
      [gan.state.params, trained.state.variables, source],
      f'{search_steps} {search_rate} {distance_weight}',
    ),
  )
  logging.info(
    'log(1 + sum exp C) of %d images: %.2f at the start, %.2f at the end',
    *(len(images.image), images.before.mean(), images.after.mean()),
  )
  return Generated(
    images,
    trained.select_accuracy,
    {
      'classifier': trained.seconds,
      'gan': gan.seconds,
      'search': seconds,
    },
  )


def augment(
  samples: splits.Labelled, image: np.ndarray, num_classes: int
) -> splits.Labelled:
  """Known training samples, then generated ones [M, H, W, C] as class K."""
  label = np.full(len(image), num_classes, samples.label.dtype)
  return splits.Labelled(
    np.concatenate([samples.image, image]),
    np.concatenate([samples.label, label]),
  )


def gradient_penalty_of(
  critic: Callable[[Array], Array], real: Array, fake: Array, share: Array
) -> Array:
  """Mean of (norm of the critic's gradient - 1)^2, [].

  Args:
    critic: images [B, H, W, C] -> [B].
    real: [B, H, W, C].
    fake: [B, H, W, C].
    share: of `real` at the points between the two, [B] in [0, 1].
  """
  share = share[:, None, None, None]
  between = share * real + (1.0 - share) * fake
  gradient = jax.grad(lambda x: critic(x).sum())(between)
  square = jnp.sum(jnp.square(gradient), axis=(1, 2, 3))
  # The square root's own gradient is not finite at 0.
  return jnp.mean(jnp.square(jnp.sqrt(square + 1e-12) - 1.0))


def critic_loss(
  params: Params,
  nets: nets_lib.Nets,
  real: Array,
  fake: Array,
  share: Array,
  weight: float,
) -> tuple[Array, dict[str, Array]]:
  """D(fake) - D(real) + weight * gradient penalty, means over the batch.

  Returns:
    The loss [], and metrics.
  """
  critic = functools.partial(nets.judge, params)
  gap = jnp.mean(critic(real)) - jnp.mean(critic(fake))
  penalty = gradient_penalty_of(critic, real, fake, share)
  return weight * penalty - gap, {'critic': gap, 'penalty': penalty}


def generator_loss(
  params: Params,
  critic: Params,
  nets: nets_lib.Nets,
  real: Array,
  weight: float,
) -> tuple[Array, dict[str, Array]]:
  """weight * mean absolute error of G(E(x)) - D(G(E(x))).

  Returns:
    The loss [], and metrics.
  """
  fake = nets.decode(params, nets.encode(params, real))
  error = jnp.mean(jnp.abs(real - fake))
  return weight * error - jnp.mean(nets.judge(critic, fake)), {
    'reconstruction': error
  }


def replica_step(
  state: GanState,
  batch: tuple[types.Batch, Array],
  *,
  nets: nets_lib.Nets,
  rule: Any,
  key: Array,
  critic_steps: int,
  gradient_penalty: float,
  reconstruction_weight: float,
) -> tuple[GanState, dict[str, Array]]:
  """Updates of the critic, then one of encoder and generator; one replica.

  Args:
    state: equal on all replicas.
    batch: this replica's share, and each row's number, [B], see batches.rows:
      randomness follows (key, step, number), wherever a row lands.
    nets: E, G, D.
    rule: the update rule of all three.
    key: of the run.
    critic_steps: updates of the critic.
    gradient_penalty: see `critic_loss`.
    reconstruction_weight: see `generator_loss`.

  Returns:
    The next state and the metrics, means over all replicas.
  """
  samples, number = batch
  real = samples.image.astype(jnp.float32) / 255.0
  fake = nets.decode(state.params, nets.encode(state.params, real))
  step_key = jax.random.fold_in(key, state.step)
  keys = jax.vmap(functools.partial(jax.random.fold_in, step_key))(number)

  def update_critic(
    carry: tuple[Params, Any], turn: Array
  ) -> tuple[tuple[Params, Any], dict[str, Array]]:
    critic, opt_state = carry
    share = jax.vmap(lambda k: jax.random.uniform(jax.random.fold_in(k, turn)))(
      keys
    )
    gradient, metrics = jax.grad(critic_loss, has_aux=True)(
      critic, nets, real, fake, share, gradient_penalty
    )
    gradient = jax.lax.pmean(gradient, sharding.AXIS)
    metrics['critic_grad_norm'] = optax.tree.norm(gradient)
    return _updated(rule, gradient, opt_state, critic), metrics

  (critic, critic_opt_state), metrics = jax.lax.scan(
    update_critic,
    (state.critic, state.critic_opt_state),
    jnp.arange(critic_steps),
    # A loop of XLA's runs on one core of a CPU.
    unroll=True,
  )
  gradient, error = jax.grad(generator_loss, has_aux=True)(
    state.params, critic, nets, real, reconstruction_weight
  )
  gradient = jax.lax.pmean(gradient, sharding.AXIS)
  params, opt_state = _updated(rule, gradient, state.opt_state, state.params)
  metrics = {**jax.tree.map(jnp.mean, metrics), **error}
  metrics['grad_norm'] = optax.tree.norm(gradient)
  return GanState(
    state.step + 1, params, critic, opt_state, critic_opt_state
  ), jax.lax.pmean(metrics, sharding.AXIS)


def init_state(
  nets: nets_lib.Nets, rule: Any, image_shape: tuple[int, ...], key: Array
) -> GanState:
  """The state before the first step, for images [H, W, C]."""
  params = nets_lib.init(nets, image_shape, key)
  critic = params.pop('critic')
  return GanState(
    jnp.zeros((), jnp.int32),
    params,
    critic,
    rule.init(params),
    rule.init(critic),
  )


def fit(
  nets: nets_lib.Nets,
  samples: splits.Labelled,
  workdir: pathlib.Path,
  *,
  seed: int,
  parallel: str,
  num_steps: int,
  batch_size: int,
  learning_rate: float,
  critic_steps: int,
  gradient_penalty: float,
  reconstruction_weight: float,
  log_every: int,
  checkpoint_every: int,
  keep_checkpoints: int,
  steps_per_dispatch: int = 0,
  data_on_device: str = 'auto',
) -> loop.Trained:
  """Trains the GAN, or goes on where its newest whole checkpoint is.

  Args are those of `generate`, and of `train.fit`.

  Raises:
    DivergedError: where a loss or a gradient is not finite; the last good
      checkpoint is kept.
  """
  rule = optimizer.adam(learning_rate)
  root = jax.random.key(seed)
  fed = feed.build(
    functools.partial(
      replica_step,
      nets=nets,
      rule=rule,
      key=train.named_key(root, 'gan'),
      critic_steps=critic_steps,
      gradient_penalty=gradient_penalty,
      reconstruction_weight=reconstruction_weight,
    ),
    samples,
    batch_size,
    seed,
    steps_per_dispatch=steps_per_dispatch,
    data_on_device=data_on_device,
  )
  engine = sharding.engine(fed.step, parallel=parallel, shared=fed.shared)
  state = init_state(
    nets, rule, samples.image.shape[1:], train.named_key(root, 'gan init')
  )
  return loop.run(
    engine,
    state,
    fed.order,
    workdir,
    _WORDS,
    num_steps=num_steps,
    batch_size=batch_size,
    log_every=log_every,
    checkpoint_every=checkpoint_every,
    keep_checkpoints=keep_checkpoints,
    steps_per_dispatch=fed.steps_per_dispatch,
  )


def objective(
  code: Array,
  start: Array,
  decode: Callable[[Array], Array],
  classify: Callable[[Array], Array],
  weight: float,
) -> tuple[Array, Array]:
  """weight * |z - E(x)|^2 + log(1 + sum_i exp C(G(z))_i), of each row.

  Args:
    code: z, [B, L].
    start: E(x), [B, L].
    decode: codes [B, L] -> images in [0, 1].
    classify: images in [0, 1] -> logits [B, K].
    weight: of the distance.

  Returns:
    The objective and its second term, [B] each.
  """
  logits = classify(decode(code))
  known = jax.nn.logsumexp(jnp.pad(logits, ((0, 0), (0, 1))), axis=1)
  distance = jnp.sum(jnp.square(code - start), axis=1)
  return weight * distance + known, known


def begin(start: Array) -> Walk:
  """The walk before its first step, from codes [B, L]."""
  infinite = jnp.full(len(start), jnp.inf, jnp.float32)
  return Walk(start, start, start, infinite, infinite)


def advance(
  walk: Walk, of: Callable[[Array], tuple[Array, Array]], *, rate: float
) -> Walk:
  """Looks at the code, keeps it where it is the best, and takes a step.

  Args:
    walk: of B codes.
    of: codes [B, L] -> objective [B], and a term of it to report [B].
    rate: length of the step, which is along the gradient of the objective; the
      code is then put back on the sphere.
  """

  def total(code: Array) -> tuple[Array, tuple[Array, Array]]:
    value, term = of(code)
    return value.sum(), (value, term)

  gradient, (value, term) = jax.grad(total, has_aux=True)(walk.code)
  # The best is kept, so steps may be long: no objective ends above its start.
  better = value < walk.least
  length = jnp.linalg.norm(gradient, axis=1, keepdims=True)
  return Walk(
    walk.start,
    nets_lib.on_sphere(walk.code - rate * gradient / (length + 1e-12)),
    jnp.where(better[:, None], walk.code, walk.best),
    jnp.where(better, value, walk.least),
    jnp.where(better, term, walk.term),
  )


def search(
  nets: nets_lib.Nets,
  classifier: models.Net,
  params: Params,
  variables: dict[str, Any],
  image: np.ndarray,
  source: np.ndarray,
  *,
  batch_size: int,
  search_steps: int,
  search_rate: float,
  distance_weight: float,
) -> Images:
  """A counterfactual image of each chosen training image.

  Args:
    nets: E and G.
    classifier: C.
    params: of E and G.
    variables: of C.
    image: training images, [N, H, W, C] uint8.
    source: chosen rows, [M].
    batch_size: images that are searched from at a time.
    search_steps: codes that are looked at, E(x) the first of them.
    search_rate: see `advance`.
    distance_weight: see `objective`.

  Returns:
    All images, in every process, each of which searches from its share.
  """

  @sharding.forward
  def set_out(variables: Any, image: Array) -> Walk:
    unit = image.astype(jnp.float32) / 255.0
    return begin(nets.encode(variables[0], unit))

  @sharding.forward
  def step(variables: Any, walk: Walk) -> Walk:
    params, of_classifier = variables

    def classify(image: Array) -> Array:
      # Unrounded, so that a gradient comes through.
      image = 255.0 * image
      return models.evaluated(classifier, of_classifier, image).logits

    return advance(
      walk,
      lambda code: objective(
        code,
        walk.start,
        functools.partial(nets.decode, params),
        classify,
        distance_weight,
      ),
      rate=search_rate,
    )

  @sharding.forward
  def arrive(variables: Any, walk: Walk) -> tuple[Array, ...]:
    made = (nets.decode(variables[0], z) for z in (walk.start, walk.best))
    distance = jnp.sum(jnp.square(walk.best - walk.start), axis=1)
    return *(jnp.round(255.0 * x).astype(jnp.uint8) for x in made), distance

  rows, own = sharding.evened(batch_size), source[sharding.share(len(source))]
  placed = sharding.replicate((params, variables))
  parts = []
  with progress.bar('counterfactual images', len(own)) as show:
    # Of no image there is one batch: shapes are told by it.
    for first in range(0, max(len(own), 1), rows):
      chosen = own[first : first + rows]
      (batch,) = batches.padded(image[chosen], np.zeros(len(chosen)), rows)
      walk, terms = set_out(placed, batch.image), []
      # Not a loop of XLA's, which runs on one core of a CPU.
      for _ in range(search_steps):
        walk = step(placed, walk)
        terms.append(walk.term)
      rebuilt, made, distance = arrive(placed, walk)
      found = (rebuilt, made, terms[0], terms[-1], distance)
      parts.append([np.asarray(x)[: len(chosen)] for x in found])
      show(first + len(chosen))
  columns = (np.concatenate(column) for column in zip(*parts, strict=True))
  return Images(source, *map(sharding.gathered, columns))


def _kept(
  path: pathlib.Path, make: Callable[[], Images], *, key: str
) -> tuple[Images, float]:
  """The images that are at `path` under this key, else new ones, kept there.

  Returns:
    The images, and the seconds they took.
  """
  found = None
  if sharding.is_writer():
    files.sweep(path.parent)
    found = _load(path, key)
  if sharding.agreed(found is not None):
    nothing = Images(*(np.zeros(0) for _ in Images._fields)), 0.0
    images, seconds = sharding.of_writer(found or nothing)
    return images, float(seconds)
  begin = time.monotonic()
  images = make()
  seconds = time.monotonic() - begin
  if sharding.is_writer():
    buffer = io.BytesIO()
    np.savez_compressed(
      buffer, **images._asdict(), key=np.array(key), seconds=np.array(seconds)
    )
    files.write_bytes(path, buffer.getvalue())
  return images, seconds


def _load(path: pathlib.Path, key: str) -> tuple[Images, float] | None:
  """What `_kept` wrote; None where it is not there, or of another key."""
  if not path.exists():
    return None
  try:
    with np.load(path, allow_pickle=False) as arrays:
      if str(arrays['key']) == key:
        images = Images(*(arrays[field] for field in Images._fields))
        return images, float(arrays['seconds'])
  # Whatever a damaged archive raises: it is made again.
  except (
    OSError,
    KeyError,
    ValueError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
  ) as error:
    logging.warning('%s is damaged (%s): made again', path, error)
    return None
  logging.warning('%s belongs to another training: made again', path)
  return None


def _updated(
  rule: Any, gradient: Params, opt_state: Any, params: Params
) -> tuple[Params, Any]:
  """Parameters and optimiser state after one update."""
  update, opt_state = rule.update(gradient, opt_state, params)
  return optax.apply_updates(params, update), opt_state


def _chosen(num_samples: int, count: int, seed: int) -> np.ndarray:
  """Rows that are searched from, each once, rising."""
  generator = np.random.default_rng([seed, zlib.crc32(b'counterfactual')])
  order = generator.permutation(num_samples)
  return np.sort(order[:count])


def _digest(arrays: Any, text: str) -> str:
  """SHA-256 of all the numbers of a tree, and of a text."""
  digest = hashlib.sha256(text.encode())
  for leaf in jax.tree.leaves(arrays):
    digest.update(np.ascontiguousarray(leaf).tobytes())
  return digest.hexdigest()
