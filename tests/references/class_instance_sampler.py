"""The class-instance sampler's rules in plain loops."""


def pick_distinct(ranks, own, size):
    """Take places out of a list one by one: ranks[j] counts among those still in it."""
    free = [place for place in range(size) if place != own]
    return [free.pop(rank) for rank in ranks]


def deal(groups, world_size):
    """Hand the groups out like cards, beginning again until each rank has as many."""
    hands = [[] for _ in range(world_size)]
    turn = 0
    while turn < len(groups) or turn % world_size:
        hands[turn % world_size].append(groups[turn % len(groups)])
        turn += 1
    return hands


def broken_rule(group, labels, images):
    """Name the rule that a group breaks, or None; images[i] is the image of item i."""
    anchor, partners = group[0], group[1:]
    same_class = {images[i] for i in range(len(labels)) if labels[i] == labels[anchor]}
    others = same_class - {images[anchor]}
    shown = [images[partner] for partner in partners]
    if any(labels[partner] != labels[anchor] for partner in partners):
        return 'a partner is of another class'
    if not others:
        return None if set(shown) == {images[anchor]} else 'a lone image has a partner'
    if images[anchor] in shown:
        return 'an image is its own partner'
    if len(others) >= len(partners) and len(set(shown)) < len(partners):
        return 'partners were drawn with replacement'
    return None
