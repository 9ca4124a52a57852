defmodule Barytherium.Frame.ValueEncoding do
  @moduledoc """
  The escapes of header names and values (STOMP 1.2, "Value Encoding"): `\\r`, `\\n`, `\\c` for a
  colon, and `\\\\`.

  `Barytherium.Frame` and the receive loop apply them where they belong; these functions are for
  text that comes from elsewhere.
  """

  alias Barytherium.Native

  @doc """
  Escapes `text`.

      iex> Barytherium.Frame.ValueEncoding.encode("a:b")
      "a\\\\cb"
  """
  @spec encode(binary()) :: binary()
  def encode(text) when is_binary(text), do: Native.escape(text)

  @doc """
  Decodes the escapes in `text`. What is no escape of STOMP's stays as it is.

      iex> Barytherium.Frame.ValueEncoding.decode("a\\\\cb")
      "a:b"
  """
  @spec decode(binary()) :: binary()
  def decode(text) when is_binary(text), do: Native.unescape(text)
end
