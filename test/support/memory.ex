defmodule Barytherium.Memory do
  @moduledoc "What a binary keeps in memory."

  # Larger binaries are not on the heap of a process.
  @largest_on_heap 64

  @doc """
  The bytes of the binary that `binary` is a part of, or its own.

  OTP 27 counts the bits of a binary that is on the heap, which is never part of another.
  """
  def referenced(binary) when is_binary(binary) do
    size = byte_size(binary)

    case :binary.referenced_byte_size(binary) do
      bits when bits == 8 * size and size <= @largest_on_heap -> size
      bytes -> bytes
    end
  end
end
