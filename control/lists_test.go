package control

import "context"

// ListPairs, ListGroups and ListVolumes are whole lists, newest first.

func (c *Controller) ListPairs(ctx context.Context, caller Caller) ([]PairView, error) {
	return all(ctx, caller, c.EachPair)
}

func (c *Controller) ListGroups(ctx context.Context, caller Caller) ([]GroupView, error) {
	return all(ctx, caller, c.EachGroup)
}

func (c *Controller) ListVolumes(ctx context.Context, caller Caller) ([]VolumeView, error) {
	return all(ctx, caller, c.EachVolume)
}

func all[T any](ctx context.Context, caller Caller, each func(context.Context, Caller, Walk, func(T) bool, func(T) bool) (bool, error)) ([]T, error) {
	list := []T{}
	_, err := each(ctx, caller, Walk{}, nil, func(x T) bool {
		list = append(list, x)
		return true
	})
	return list, err
}
