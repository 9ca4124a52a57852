defmodule Barytherium.Client.Feed do
  @moduledoc false
  # What counts the messages of a subscription. It outlives the connections.

  alias Barytherium.Native

  # No sequence has more numbers before it begins again.
  @numbers_max Bitwise.bsl(1, 62)

  @doc "For a subscription with these options."
  @spec new(%{:timestamp => String.t(), :sequence => term(), optional(atom()) => term()}) ::
          Native.feed()
  def new(%{timestamp: timestamp, sequence: sequence}),
    do: Native.new_feed(timestamp, numbered(sequence))

  defp numbered(nil), do: nil
  defp numbered({header, numbers}), do: {header, numbers}
  defp numbered(header), do: {header, @numbers_max}

  @doc "Whether this is a sequence: the name of a header, or that and how many numbers there are."
  @spec sequence?(term()) :: boolean()
  def sequence?({header, numbers}),
    do: header?(header) and is_integer(numbers) and numbers in 2..@numbers_max

  def sequence?(header), do: header?(header)

  defp header?(header), do: is_binary(header) and header != ""
end
