package api

import "context"

// getLog tells what the stream holds. How far the audit is comes first: it never
// seems further than the stream.
func (s *Server) getLog(ctx context.Context, _ *struct{}) (*body[LogInfo], error) {
	var out LogInfo
	var err error
	if out.Audited.Incarnation, out.Audited.Sequence, err = s.o.Audit.High(ctx); err != nil {
		return nil, s.queryError(ctx, "the audit store", err)
	}
	st, err := s.o.Log.LogState(ctx)
	if err != nil {
		return nil, s.queryError(ctx, "the event log", err)
	}
	out.Incarnation, out.First, out.Last, out.FirstTime, out.LastTime = st.Incarnation, st.First, st.Last, st.FirstTime, st.LastTime
	out.Events, out.Bytes = st.Events, st.Bytes
	return &body[LogInfo]{out}, nil
}

func (s *Server) listGaps(ctx context.Context, _ *struct{}) (*body[Page[Gap]], error) {
	gaps, err := s.o.Audit.Gaps(ctx)
	if err != nil {
		return nil, s.queryError(ctx, "the audit store", err)
	}
	out := &body[Page[Gap]]{Page[Gap]{Items: make([]Gap, len(gaps))}}
	for i, g := range gaps {
		out.Body.Items[i] = Gap(g)
	}
	return out, nil
}
