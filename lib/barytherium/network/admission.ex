defmodule Barytherium.Network.Admission do
  @moduledoc false
  # Writes of callers that wait until there is room for them to be sent. Nothing of a write that waits here
  # has been written, so it can still be given up.
  #
  # Small and large writes have a queue each, and the queues get the same number of bytes when both have
  # something to write. So a large write does not hold up the small ones for longer than its own bytes take,
  # and many small ones do not keep it out.

  alias Barytherium.Connection.Deadline
  alias Barytherium.Network.Outbox

  # A write that costs more is large. It fills a batch of the outbox alone.
  @small 64 * 1024

  # `served`: the bytes that a queue has got, counted from when both had something to write.
  defstruct next: 1,
            entries: %{},
            queues: %{small: :queue.new(), large: :queue.new()},
            served: %{small: 0, large: 0}

  # What watches over an entry: the timer of its deadline, and the monitor of its caller.
  @typep watch :: {nil | reference(), nil | reference()}

  @type t :: %__MODULE__{
          next: pos_integer(),
          entries: %{pos_integer() => {Outbox.write(), Deadline.t(), watch()}},
          queues: %{(:small | :large) => :queue.queue(pos_integer())},
          served: %{(:small | :large) => non_neg_integer()}
        }

  @spec empty?(t()) :: boolean()
  def empty?(%__MODULE__{entries: entries}), do: entries == %{}

  @doc "The callers that wait."
  @spec froms(t()) :: [Outbox.from()]
  def froms(%__MODULE__{entries: entries}),
    do: for({_number, {{_frames, _cost, from}, _deadline, _watch}} <- entries, do: from)

  @doc """
  Adds a write. If it still waits at the deadline, the calling process gets `{:late, number}`, and if the
  caller of the write ends, a message of a monitor with `{:gone, number}`. It has to call `give_up/2` then.
  """
  @spec put(t(), Outbox.write(), Deadline.t()) :: t()
  def put(%__MODULE__{next: number} = admission, {_frames, cost, from} = write, deadline) do
    watch = {timer(number, deadline), monitor(number, from)}
    kind = if cost > @small, do: :large, else: :small
    admission = start(kind, admission)

    %{
      admission
      | next: number + 1,
        entries: Map.put(admission.entries, number, {write, deadline, watch}),
        queues: Map.update!(admission.queues, kind, &:queue.in(number, &1))
    }
  end

  defp timer(_number, :infinity), do: nil
  defp timer(number, end_), do: Process.send_after(self(), {:late, number}, Deadline.left(end_))

  # A client that submits a write ends with its connection.
  defp monitor(_number, {how, _pid, _tag}) when how in [:tag, :report], do: nil
  defp monitor(number, {pid, _tag}), do: :erlang.monitor(:process, pid, tag: {:gone, number})

  defp unwatch({timer, monitor}) do
    timer && Process.cancel_timer(timer)
    monitor && Process.demonitor(monitor, [:flush])
  end

  # A queue that was empty gets nothing for that time.
  defp start(kind, %{queues: queues, served: served} = admission) do
    if :queue.is_empty(queues[kind]),
      do: %{admission | served: %{served | kind => served |> Map.values() |> Enum.max()}},
      else: admission
  end

  @doc "Takes out a write that waits, if it has not been taken out before."
  @spec give_up(t(), pos_integer()) :: {nil | Outbox.write(), t()}
  def give_up(%__MODULE__{} = admission, number) do
    case Map.pop(admission.entries, number) do
      {nil, _entries} ->
        {nil, admission}

      {{write, _deadline, watch}, entries} ->
        unwatch(watch)
        {write, %{admission | entries: entries}}
    end
  end

  @doc "Takes out the next write, if `room?` is true for its cost. One whose deadline is over stays."
  @spec take(t(), (non_neg_integer() -> boolean())) :: {nil | Outbox.write(), t()}
  def take(%__MODULE__{} = admission, room?) do
    admission = admission |> skip(:small) |> skip(:large)

    with {kind, number} <- next(admission),
         {{_frames, cost, _from} = write, _deadline, watch} = admission.entries[number],
         true <- room?.(cost) do
      unwatch(watch)

      {write,
       %{
         admission
         | entries: Map.delete(admission.entries, number),
           queues: Map.update!(admission.queues, kind, &:queue.drop/1),
           served: Map.update!(admission.served, kind, &(&1 + cost))
       }}
    else
      _nothing_or_no_room -> {nil, admission}
    end
  end

  # Small ones go first if both have got the same.
  defp next(%{queues: queues, served: served}) do
    heads =
      for kind <- [:small, :large],
          {:value, number} <- [:queue.peek(queues[kind])],
          do: {kind, number}

    Enum.min_by(heads, fn {kind, _number} -> served[kind] end, fn -> nil end)
  end

  # Drops what was given up, or is about to be, from the front of a queue.
  defp skip(%{queues: queues, entries: entries} = admission, kind) do
    with {:value, number} <- :queue.peek(queues[kind]),
         true <- gone?(entries[number]) do
      skip(%{admission | queues: %{queues | kind => :queue.drop(queues[kind])}}, kind)
    else
      _empty_or_waiting -> admission
    end
  end

  defp gone?(nil), do: true
  defp gone?({_write, deadline, _watch}), do: Deadline.left(deadline) == 0
end
