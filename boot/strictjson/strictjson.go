// Package strictjson decodes JSON that every reader understands in the same way.
//
// It refuses what encoding/json takes and others read differently: a name that
// comes twice in an object, in whatever case; a field's name in another case
// ("Version" for "version"); deep nesting; and anything after the value.
package strictjson

import (
	"bytes"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"sync"
)

// Decode decodes one JSON value without unknown fields into v.
func Decode(text []byte, v any) error {
	if err := check(text, reflect.TypeOf(v)); err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	return d.Decode(v)
}

// Unmarshal is Decode for what a later release may have more fields of.
func Unmarshal(text []byte, v any) error {
	if err := check(text, reflect.TypeOf(v)); err != nil {
		return err
	}
	return json.Unmarshal(text, v)
}

func check(text []byte, t reflect.Type) error {
	if err := Check(text); err != nil {
		return err
	}
	var tree any
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	if err := d.Decode(&tree); err != nil {
		return err
	}
	return checkNames(tree, t)
}

// maxDepth is how deep JSON may nest; cryptsetup's parser has the same limit.
const maxDepth = 32

// Check refuses what parsers read differently whatever it is decoded into: names that
// come twice in an object, in whatever case, deep nesting, more than one value.
func Check(text []byte) error {
	type level struct {
		names  map[string]bool // nil in an array
		inName bool            // the next token is a name
	}
	var stack []level
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.UseNumber()
	for {
		token, err := dec.Token()
		if errors.Is(err, io.EOF) && len(stack) == 0 {
			return errors.New("no JSON value")
		}
		if err != nil {
			return err
		}
		top := len(stack) - 1
		switch t := token.(type) {
		case json.Delim:
			if t == '{' || t == '[' {
				if len(stack) == maxDepth {
					return fmt.Errorf("nested deeper than %d", maxDepth)
				}
				l := level{}
				if t == '{' {
					l = level{names: map[string]bool{}, inName: true}
				}
				stack = append(stack, l)
				continue
			}
			stack = stack[:top]
		case string:
			if top >= 0 && stack[top].inName {
				name := strings.ToLower(t)
				if stack[top].names[name] {
					return fmt.Errorf("name %q comes twice", t)
				}
				stack[top].names[name] = true
				stack[top].inName = false
				continue
			}
		}
		// A value has ended here.
		if len(stack) == 0 {
			break
		}
		last := &stack[len(stack)-1]
		last.inName = last.names != nil
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("text after the JSON value")
	}
	return nil
}

var (
	ownJSON = reflect.TypeFor[json.Unmarshaler]()
	ownText = reflect.TypeFor[encoding.TextUnmarshaler]()
)

// checkNames refuses names that are a field's but for their case: encoding/json takes
// them for the field's.
func checkNames(value any, t reflect.Type) error {
	for t != nil && t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t == nil || reflect.PointerTo(t).Implements(ownJSON) || reflect.PointerTo(t).Implements(ownText) {
		return nil // it reads itself
	}
	switch value := value.(type) {
	case []any:
		if t.Kind() != reflect.Slice && t.Kind() != reflect.Array {
			return nil // Decode says so
		}
		for _, v := range value {
			if err := checkNames(v, t.Elem()); err != nil {
				return err
			}
		}
	case map[string]any:
		for name, v := range value {
			of, err := member(t, name)
			if err == nil {
				err = checkNames(v, of)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// fields are those of the types that were decoded, by their [reflect.Type]: listing them
// for each name was a third of the time that the checks take.
var fields sync.Map

func fieldsOf(t reflect.Type) []reflect.StructField {
	if have, ok := fields.Load(t); ok {
		return have.([]reflect.StructField)
	}
	have, _ := fields.LoadOrStore(t, reflect.VisibleFields(t))
	return have.([]reflect.StructField)
}

// member is the type that a name's value has in t; nil where t has no such name.
func member(t reflect.Type, name string) (reflect.Type, error) {
	switch t.Kind() {
	case reflect.Map:
		return t.Elem(), nil
	case reflect.Struct:
	default:
		return nil, nil
	}
	for _, f := range fieldsOf(t) {
		tag, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		want := tag
		if want == "" {
			want = f.Name
		}
		switch {
		case !f.IsExported(), f.Anonymous && tag == "", tag == "-":
		case want == name:
			return f.Type, nil
		case strings.EqualFold(want, name):
			return nil, fmt.Errorf("name %q is spelt %q", name, want)
		}
	}
	return nil, nil
}
