"""Colors of all figures: Okabe and Ito's palette, which colour-blind readers can tell apart."""

COLORS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9')
REFERENCE = '#999999'  # of what others are compared with
