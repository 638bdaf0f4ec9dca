package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// errBehind means that a reader's server has not yet what the stream's leader has.
var errBehind = errors.New("the server that was read from is behind the leader of the stream")

// behindAttempts is how often in a row a reader up to the present may meet a
// server that is behind. Each time any of the servers serves it, so that several
// attempts find one that is not, or give it the time to catch up.
const behindAttempts = 10

// complete says that a consumer without further messages has had all that were to
// be read. The server that has the consumer may be one that follows, and what it
// lacks is then not pending for it: so the leader is asked.
func (s *scan) complete(ctx context.Context) error {
	for _, subject := range s.o.subjects {
		seq, err := s.missing(ctx, subject)
		if err != nil {
			return outage(err)
		}
		if seq > 0 && seq <= s.end && (s.o.until == 0 || seq <= s.o.until) {
			return interruption{fmt.Errorf("%w: stream %s, message %d: %w", ErrUnavailable, s.o.stream, seq, errBehind)}
		}
	}
	return nil
}

// missing is the sequence of the next message on a subject that was not read, as
// the leader has it; 0: there is none.
func (s *scan) missing(ctx context.Context, subject string) (uint64, error) {
	seq, err := s.b.nextOn(ctx, s.o.stream, subject, nextQuery{Seq: max(s.o.from, s.last+1)})
	if err != nil || seq == 0 || s.last > 0 || s.o.since.IsZero() {
		return seq, err
	}
	since, err := s.b.nextOn(ctx, s.o.stream, subject, nextQuery{Since: &s.o.since})
	if since == 0 {
		return 0, err
	}
	return max(seq, since), err
}

// nextQuery asks for a message on a subject from a sequence or a time on.
type nextQuery struct {
	Subject string     `json:"next_by_subj"`
	Seq     uint64     `json:"seq,omitempty"`
	Since   *time.Time `json:"start_time,omitempty"`
}

// nextOn asks the leader of a stream, which answers this call alone, for the
// sequence of the first message that a query finds; 0: there is none.
func (b *Bus) nextOn(ctx context.Context, stream, subject string, q nextQuery) (uint64, error) {
	q.Subject = subject
	ask, err := json.Marshal(q)
	if err != nil {
		return 0, err
	}
	to := apiSubject("STREAM.MSG.GET", stream)
	ctx, cancel := b.request(ctx, to)
	defer cancel()
	m, err := b.nc.RequestWithContext(ctx, to, ask)
	if err != nil {
		return 0, refusal(ctx, err)
	}
	var answer struct {
		Error   *jetstream.APIError `json:"error"`
		Message struct {
			Seq uint64 `json:"seq"`
		} `json:"message"`
	}
	if err := json.Unmarshal(m.Data, &answer); err != nil {
		return 0, fmt.Errorf("%s: %w", to, err)
	}
	switch {
	case answer.Error == nil:
		return answer.Message.Seq, nil
	case answer.Error.ErrorCode == jetstream.JSErrCodeMessageNotFound:
		return 0, nil
	default:
		return 0, answer.Error
	}
}
