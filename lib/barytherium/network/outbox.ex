defmodule Barytherium.Network.Outbox do
  @moduledoc false
  # Writes that wait. A batch of them is encoded as soon as it is full. Encoded frames are binaries
  # outside the heap of the process, so its garbage collections do not get longer when many wait.

  alias Barytherium.Frame
  alias Barytherium.Frame.Outgoing

  # The cost of writes that are encoded and sent at once. This is large enough to make the cost of
  # the calls small, and small enough to be encoded in 0.1 ms.
  @batch 64 * 1024

  # The latest write of the batch comes first.
  defstruct batch: [], batch_cost: 0, encoded: :queue.new(), bytes: 0

  @typedoc "Prepared frames, their cost, and the caller that waits until they are written."
  @type write :: {[Frame.t()], non_neg_integer(), nil | GenServer.from()}

  @typedoc "An encoded batch: its data and their size, its number of frames, and who waits for it."
  @type encoded :: %{
          data: iodata(),
          bytes: non_neg_integer(),
          frames: non_neg_integer(),
          froms: [GenServer.from()]
        }

  @typedoc "A write that cannot be encoded, the frame and the header, and why."
  @type refused :: {write(), Frame.t(), reason :: atom(), header :: non_neg_integer()}

  @type t :: %__MODULE__{
          batch: [write()],
          batch_cost: non_neg_integer(),
          encoded: :queue.queue(encoded()),
          bytes: non_neg_integer()
        }

  @doc "Bytes of encoded frames that wait, plus the cost of the frames not yet encoded."
  @spec bytes(t()) :: non_neg_integer()
  def bytes(outbox), do: outbox.bytes + outbox.batch_cost

  @doc "Adds a write. `version` is the one to encode it for."
  @spec put(t(), write(), Frame.version()) :: {t(), [refused()]}
  def put(outbox, {_frames, cost, _from} = write, version) do
    outbox = %{outbox | batch: [write | outbox.batch], batch_cost: outbox.batch_cost + cost}
    if outbox.batch_cost < @batch, do: {outbox, []}, else: encode(outbox, version)
  end

  @doc "Takes out what is to be sent next."
  @spec take(t(), Frame.version()) :: {:empty | encoded(), t(), [refused()]}
  def take(outbox, version) do
    {outbox, refused} =
      if :queue.is_empty(outbox.encoded), do: encode(outbox, version), else: {outbox, []}

    case :queue.out(outbox.encoded) do
      {:empty, _queue} ->
        {:empty, outbox, refused}

      {{:value, encoded}, queue} ->
        {encoded, %{outbox | encoded: queue, bytes: outbox.bytes - encoded.bytes}, refused}
    end
  end

  @doc "The callers that wait for any of the writes."
  @spec froms(t()) :: [GenServer.from()]
  def froms(outbox) do
    encoded = Enum.flat_map(:queue.to_list(outbox.encoded), & &1.froms)
    encoded ++ froms_of(Enum.reverse(outbox.batch))
  end

  defp froms_of(writes), do: for({_frames, _cost, from} <- writes, from, do: from)

  defp encode(%{batch: []} = outbox, _version), do: {outbox, []}

  defp encode(outbox, version) do
    {writes, data, refused} = outbox.batch |> Enum.reverse() |> encode(outbox.batch_cost, version)

    bytes = IO.iodata_length(data)
    frames = Enum.reduce(writes, 0, fn {frames, _cost, _from}, sum -> sum + length(frames) end)
    encoded = %{data: data, bytes: bytes, frames: frames, froms: froms_of(writes)}
    queue = if writes == [], do: outbox.encoded, else: :queue.in(encoded, outbox.encoded)
    {%{outbox | batch: [], batch_cost: 0, encoded: queue, bytes: outbox.bytes + bytes}, refused}
  end

  defp encode(writes, cost, version) do
    frames = Enum.flat_map(writes, fn {frames, _cost, _from} -> frames end)

    case Outgoing.encode(frames, cost, version) do
      {:ok, data} ->
        {writes, data, []}

      # The frames before this one can be encoded.
      {:error, {index, reason, header}} ->
        {before, [write | others]} = split(writes, index)
        {^before, data, []} = encode(before, cost, version)
        {others, more, refused} = encode(others, cost, version)
        refusal = {write, Enum.at(frames, index), reason, header}
        {before ++ others, [data | more], [refusal | refused]}
    end
  end

  # Splits before the write that contains the frame at `index`.
  defp split([{frames, _cost, _from} = write | writes], index) when index >= length(frames) do
    {before, others} = split(writes, index - length(frames))
    {[write | before], others}
  end

  defp split(writes, _index), do: {[], writes}
end
