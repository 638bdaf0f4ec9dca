package bus

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"

	"github.com/k3s-autoscaler/k3s-autoscaler/events"
)

// Undecoded returns d with the event that stands for its message, which is no
// event: the deadletter.recorded that says so. reader is the handler that set it
// aside. It derives from what the stream holds alone, so that whoever reads the
// message, and whenever, puts the same bytes in its place.
func Undecoded(reader string, d Delivery, why *UndecodableError) (Delivery, error) {
	if d.Key == (Key{}) {
		d.Key = Key{Cluster: UnknownCluster, Name: events.ClusterKey}
	}
	d.Event = events.Event{}
	e, err := deadEvent(undecodedLetter(reader, d, why), d.Key)
	if err != nil {
		return d, fmt.Errorf("record undecodable message %d: %w", d.Sequence, err)
	}
	d.Event = e
	return d, nil
}

// undecodedLetter is the dead letter of a message that is no event, as far as
// deadletter.recorded tells it. How often it was delivered, and when it was set
// aside, are of the moment: it is as if that was at once.
func undecodedLetter(reader string, d Delivery, why *UndecodableError) DeadLetter {
	return DeadLetter{
		ID:      deadLetterID(reader, d),
		Handler: reader, Reason: failure{err: why}.reason(), Attempts: 1, At: d.StreamTime, Sequence: d.Sequence,
		Key: d.Key, Origin: d.Sequence, Incarnation: d.Incarnation,
	}
}

// deadLetterID derives from the consumer, the stream and the sequence.
func deadLetterID(consumer string, d Delivery) string {
	return events.ID("deadletter", consumer, d.Incarnation, strconv.FormatUint(d.Sequence, 10))
}

// validate is e.Validate with its findings in a fixed order: the SDK keeps them
// in a map.
func validate(e events.Event) error {
	if ec, ok := e.Context.(*cloudevents.EventContextV1); ok && e.FieldErrors == nil && plain(ec) {
		return nil
	}
	err := e.Validate()
	var findings cloudevents.ValidationError
	if !errors.As(err, &findings) {
		return err
	}
	errs := make([]error, 0, len(findings))
	for field, f := range findings {
		errs = append(errs, fmt.Errorf("%s: %w", field, f))
	}
	return joinSorted(errs)
}

// plain reports whether an event is certainly valid, as almost all are: a look at
// what e.Validate parses once more.
func plain(ec *cloudevents.EventContextV1) bool {
	full := func(s string) bool { return s != "" && s[0] > ' ' && s[0] < 0x7f } // not only blanks
	return full(ec.ID) && full(ec.Type) && full(ec.Source.Path) &&
		ec.DataContentType != nil && *ec.DataContentType == cloudevents.ApplicationJSON &&
		(ec.Subject == nil || full(*ec.Subject)) &&
		(ec.DataSchema == nil || ec.DataSchema.IsAbs())
}

// joinSorted joins errors that were found in the order of a map: what is wrong with
// a message is part of the record, and the same each time.
func joinSorted(errs []error) error {
	errs = slices.DeleteFunc(errs, func(err error) bool { return err == nil })
	slices.SortFunc(errs, func(a, b error) int { return cmp.Compare(a.Error(), b.Error()) })
	return errors.Join(errs...)
}
