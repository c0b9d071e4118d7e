"""report.html: one file that needs no network and no script."""

import base64
import json
import pathlib

import jinja2

from crosr_jax.report import material as material_lib
from crosr_jax.report import tables, words

_TEMPLATE = 'report.html.j2'


def template(name: str) -> jinja2.Template:
  """A template of this folder; all text is escaped, nothing may be missing."""
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  return environment.get_template(name)


def render(report: dict, pictures: list[material_lib.Picture]) -> str:
  """The whole page, pictures and style inside."""
  return template(_TEMPLATE).render(
    name=report['name'],
    verdict=tables.verdict(report),
    glance=tables.glance(report),
    beside=tables.beside(report),
    notes=report.get('notes') or [],
    summary=tables.summary(report),
    explanation=words.EXPLANATION,
    readings=words.READINGS,
    results=tables.results(report),
    classes=tables.classes(report),
    pictures=[(picture, embedded(picture.png)) for picture in pictures],
    config=json.dumps(report.get('config') or {}, indent=2),
    versions=report.get('versions') or {},
  )


def embedded(png: bytes) -> str:
  """A picture as a link that holds it."""
  return 'data:image/png;base64,' + base64.b64encode(png).decode('ascii')
