"""Figures as plain text, for whoever looks at a terminal."""


def summary(result: dict) -> str:
  """The figures people ask for first, as a table for each unknown set."""
  lines = [f'Closed-set accuracy {result["closed_set_accuracy"]:.3f}']
  for name, row in result['unknown'].items():
    lines.append(
      f'\n{name}: {row["n_known"]} known, {row["n_unknown"]} unknown\n'
      f'{"":17}{"macro F1":>10}{"AUROC":>10}{"FPR95":>10}{"OSCR":>10}'
    )
    for method, found in row.items():
      if isinstance(found, dict) and 'auroc' in found:
        keys = ('macro_f1', 'auroc', 'fpr95', 'oscr')
        cells = ''.join(f'{_cell(found[key]):>10}' for key in keys)
        lines.append(f'{method:17}{cells}')
  return '\n'.join(lines)


def _cell(value: float | None) -> str:
  return '-' if value is None else f'{value:.3f}'
