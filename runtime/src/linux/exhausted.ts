/** Whether a call failed because this process, or the machine, can open no more files (errno(3)). */
export const isExhausted = (error: unknown): boolean => {
  const { code } = (error ?? {}) as NodeJS.ErrnoException;
  return code === "EMFILE" || code === "ENFILE";
};

/**
 * For who takes a failure for an answer, as "it is not there": throws it once more where nobody could look, because no file
 * could be opened.
 */
export const throwExhausted = (error: unknown): void => {
  if (isExhausted(error)) throw error;
};
