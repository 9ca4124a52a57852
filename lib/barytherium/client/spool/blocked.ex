defmodule Barytherium.Client.Spool.Blocked do
  @moduledoc false
  # Calls that wait for room in a spool, in order. The calling process gets `{:spool, {:no_room, number}}` when the time of
  # one is over, and a message of a monitor with `{:blocked, number}` when its caller has ended.

  alias Barytherium.Client.Spool.Store

  defstruct next: 1, entries: %{}, order: :queue.new()

  @type t :: %__MODULE__{
          next: pos_integer(),
          entries: %{
            pos_integer() => {Store.publication(), :gen_statem.from(), {reference(), reference()}}
          },
          order: :queue.queue(pos_integer())
        }

  @spec empty?(t()) :: boolean()
  def empty?(%__MODULE__{entries: entries}), do: entries == %{}

  @spec put(t(), Store.publication(), :gen_statem.from(), timeout()) :: t()
  def put(%__MODULE__{next: number} = blocked, publication, {pid, _tag} = from, timeout) do
    timer = Process.send_after(self(), {:spool, {:no_room, number}}, timeout)
    monitor = :erlang.monitor(:process, pid, tag: {:blocked, number})
    entries = Map.put(blocked.entries, number, {publication, from, {timer, monitor}})
    %{blocked | next: number + 1, entries: entries, order: :queue.in(number, blocked.order)}
  end

  @doc "Takes out the first one, if `room?` is true for its size."
  @spec take(t(), (pos_integer() -> boolean())) ::
          {Store.publication(), :gen_statem.from(), t()} | nil
  def take(%__MODULE__{order: order, entries: entries} = blocked, room?) do
    with {:value, number} <- :queue.peek(order) do
      case entries do
        %{^number => {{_to, size, _frames}, _from, _watch}} ->
          if room?.(size), do: give_up(blocked, number)

        _given_up ->
          take(%{blocked | order: :queue.drop(order)}, room?)
      end
    else
      :empty -> nil
    end
  end

  @doc "Takes out one of them."
  @spec give_up(t(), pos_integer()) :: {Store.publication(), :gen_statem.from(), t()} | nil
  def give_up(%__MODULE__{entries: entries} = blocked, number) do
    case Map.pop(entries, number) do
      {nil, _entries} ->
        nil

      {{publication, from, {timer, monitor}}, entries} ->
        Process.cancel_timer(timer)
        Process.demonitor(monitor, [:flush])
        {publication, from, %{blocked | entries: entries}}
    end
  end

  @doc "Takes out all."
  @spec take_all(t()) :: {[:gen_statem.from()], t()}
  def take_all(%__MODULE__{entries: entries} = blocked) do
    Enum.reduce(Map.keys(entries), {[], blocked}, fn number, {froms, blocked} ->
      {_publication, from, blocked} = give_up(blocked, number)
      {[from | froms], blocked}
    end)
  end
end
