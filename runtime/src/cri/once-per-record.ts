/**
 * The same answer for the same record, for as long as the record lives. Records are never changed, only replaced, so the
 * messages made of them can be shared by all who list them.
 */
export const oncePerRecord = <R extends object, M>(make: (record: R) => M): ((record: R) => M) => {
  const made = new WeakMap<R, M>();
  return (record) => {
    const known = made.get(record);
    if (known !== undefined) return known;
    const message = make(record);
    made.set(record, message);
    return message;
  };
};
