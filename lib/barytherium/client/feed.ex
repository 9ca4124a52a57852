defmodule Barytherium.Client.Feed do
  @moduledoc false
  # What counts the messages of a subscription. It outlives the connections.

  alias Barytherium.{Histogram, Native}

  # No sequence has more numbers before it begins again.
  @numbers_max Bitwise.bsl(1, 62)

  @doc "For a subscription with these options."
  @spec new(%{:timestamp => String.t(), :sequence => term(), optional(atom()) => term()}) ::
          Native.feed()
  def new(%{timestamp: timestamp, sequence: sequence}),
    do: Native.new_feed(timestamp, numbered(sequence))

  @typedoc "How long messages take from the socket to their callback, and to their acknowledgement."
  @type delays :: %{to_start: Histogram.counters(), to_ack: Histogram.counters()}

  @doc "The same, and its delays, for a subscription with handlers."
  @spec counters(map()) :: %{feed: Native.feed(), delays: delays()}
  def counters(subscription) do
    delays = %{to_start: Histogram.new(), to_ack: Histogram.new()}
    %{feed: new(subscription), delays: delays}
  end

  @doc "Counts how long it is since a message was read, at a time that the receive loop gave."
  @spec delayed(Histogram.counters(), non_neg_integer()) :: :ok
  def delayed(counters, read_at),
    do: Histogram.add(counters, div(Native.clock() - read_at, 1_000))

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
