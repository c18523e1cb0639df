"""The order of the training data depends on the seed and the epoch only."""

from torch.utils.data import Dataset

from composer_ls.lab.images.epoch_sampler import EpochSampler


class Numbers(Dataset):
    def __len__(self):
        return 50

    def __getitem__(self, index):
        return index


class Told(Numbers):
    epoch = None

    def set_epoch(self, epoch):
        self.epoch = epoch


def order(seed, epoch):
    sampler = EpochSampler(Numbers(), seed)
    sampler.set_epoch(epoch)
    return list(sampler)


def test_every_epoch_and_seed_has_an_order_of_its_own():
    orders = [order(seed, epoch) for seed in (0, 1, 2) for epoch in (0, 1, 2)]  # seed 0, epoch 1 is not seed 1, epoch 0
    assert len(set(map(tuple, orders))) == 9
    assert all(sorted(one) == list(range(50)) for one in orders)
    assert order(1, 2) == order(1, 2)


def test_a_data_set_that_draws_for_itself_is_told_the_epoch():
    told = Told()
    EpochSampler(told, 0).set_epoch(7)
    assert told.epoch == 7
