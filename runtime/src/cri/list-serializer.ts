import { type DescMessage, type Message, toBinary } from "@bufbuild/protobuf";
import { BinaryWriter, WireType } from "@bufbuild/protobuf/wire";

/**
 * Serializes a message that is one list of messages and nothing else, as the answers to List* are (CRI v1). What an
 * item came to is kept for as long as that item lives: a list of a hundred pods of which one is new is encoded once.
 * Items must not change after they were listed.
 */
export const listSerializer = (output: DescMessage): ((message: Message) => Buffer) => {
  const [field, ...others] = output.fields;
  if (field?.fieldKind !== "list" || field.listKind !== "message" || others.length > 0)
    throw new TypeError(`${output.typeName} is not a list of messages alone`);
  const known = new WeakMap<Message, Uint8Array>();
  const encoded = (item: Message): Uint8Array => {
    let bytes = known.get(item);
    if (bytes === undefined) {
      bytes = new BinaryWriter()
        .tag(field.number, WireType.LengthDelimited)
        .bytes(toBinary(field.message, item))
        .finish();
      known.set(item, bytes);
    }
    return bytes;
  };
  return (message) => {
    const items = (message as unknown as Record<string, Message[]>)[field.localName] ?? [];
    return Buffer.concat(items.map(encoded));
  };
};
