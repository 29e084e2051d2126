package control

import "context"

// ListPairs is the whole list, newest first.
func (c *Controller) ListPairs(ctx context.Context, caller Caller) ([]PairView, error) {
	return all(ctx, caller, c.EachPair)
}

// ListGroups is the whole list, newest first.
func (c *Controller) ListGroups(ctx context.Context, caller Caller) ([]GroupView, error) {
	return all(ctx, caller, c.EachGroup)
}

// ListVolumes is the whole list, newest first.
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
