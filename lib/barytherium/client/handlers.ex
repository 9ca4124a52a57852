defmodule Barytherium.Client.Handlers do
  @moduledoc false
  # The handler of a consumer, the process that runs its callbacks, as its client sees it. The client starts it,
  # tells it of connections, and never waits for it. `nil` stands for a client without a consumer.

  alias Barytherium.Client.{Backoff, Session}
  alias Barytherium.Consumer.{Dealer, Partition, Worker}
  alias Barytherium.Network

  # Milliseconds before a process that has crashed is started again. The pause doubles with each crash, until
  # one has lived for the longest.
  @pauses {100, 30_000}

  # `recipients` are the processes that the receive loop sends messages to.
  @enforce_keys [:settings, :pid, :recipients, :since, :backoff]
  defstruct [:settings, :pid, :recipients, :since, :backoff, finishing: false]

  @type consumer :: %__MODULE__{}
  @type t :: nil | consumer()

  @spec start(nil | map()) :: {:ok, t()} | {:error, term()}
  def start(nil), do: {:ok, nil}

  def start(settings) do
    # `Barytherium.Consumer.Handler` looks at it.
    settings =
      Map.merge(settings, %{
        stop_at: :atomics.new(1, []),
        left: :counters.new(1, []),
        working: :atomics.new(settings.handlers, []),
        collecting: :atomics.new(settings.handlers, []),
        # Of several it is another one.
        number: 1
      })

    with {:ok, pid} <- module(settings).start_link(self(), settings) do
      backoff = Backoff.new(@pauses)

      handlers = %__MODULE__{
        settings: settings,
        pid: pid,
        recipients: [],
        since: now(),
        backoff: backoff
      }

      {:ok, started(handlers, pid)}
    end
  end

  @doc "Starts it again, if it has ended."
  @spec ensure(t()) :: t()
  def ensure(%__MODULE__{pid: nil, settings: settings} = handlers) do
    for number <- 1..settings.handlers,
        times <- [settings.working, settings.collecting],
        do: :atomics.put(times, number, 0)

    started(handlers, module(settings).start_again(self(), settings))
  end

  def ensure(handlers), do: handlers

  defp started(%{settings: settings} = handlers, pid) do
    recipients = if module(settings) == Partition, do: Partition.workers(pid), else: [pid]
    %{handlers | pid: pid, recipients: recipients, since: now()}
  end

  defp module(%{handlers: 1}), do: Worker
  defp module(%{key: nil}), do: Dealer
  defp module(_key), do: Partition

  @spec running?(t()) :: boolean()
  def running?(handlers), do: handlers != nil and handlers.pid != nil

  @doc "It has ended."
  @spec ended(consumer()) :: consumer()
  def ended(%__MODULE__{} = handlers) do
    %{handlers | pid: nil, backoff: Backoff.lived(handlers.backoff, now() - handlers.since)}
  end

  @doc "Milliseconds that a callback has taken, if one runs: of several the longest."
  @spec working(consumer()) :: nil | non_neg_integer()
  def working(%__MODULE__{pid: nil}), do: nil

  def working(%__MODULE__{settings: %{handlers: count, working: working}}) do
    case for(n <- 1..count, since = :atomics.get(working, n), since != 0, do: since) do
      [] -> nil
      since -> now() - Enum.min(since)
    end
  end

  @doc "Whether they have something to do."
  @spec busy?(t()) :: boolean()
  def busy?(nil), do: false

  def busy?(handlers) do
    working(handlers) != nil or collecting?(handlers) or
      Enum.any?(handlers.recipients, &waits?/1)
  end

  # Whether one of them has a part of a batch.
  defp collecting?(%__MODULE__{settings: %{handlers: count, collecting: collecting}}),
    do: Enum.any?(1..count, &(:atomics.get(collecting, &1) != 0))

  defp waits?(pid), do: match?({_, n} when n > 0, Process.info(pid, :message_queue_len))

  @doc "Why the connection ends when the process has: its exit reason may hold a body."
  @spec reason(term()) :: atom()
  def reason({:shutdown, :exception}), do: :exception
  def reason(_crash), do: :handler

  @doc "How long to wait before it is started again, in milliseconds."
  @spec pause(consumer()) :: {pos_integer(), consumer()}
  def pause(%__MODULE__{} = handlers) do
    {wait, backoff} = Backoff.next(handlers.backoff)
    {wait, %{handlers | backoff: backoff}}
  end

  @doc "There is a connection, on which these subscriptions will be made."
  @spec session(t(), Session.t(), [Session.subscription()]) :: :ok
  def session(nil, _session, _subscriptions), do: :ok

  def session(handlers, session, subscriptions) do
    {_frames, session} = Enum.map_reduce(subscriptions, session, &Session.subscribe(&2, &1))
    :counters.put(handlers.settings.left, 1, 0)
    tell(handlers, {:session, session})
  end

  @doc "Something has happened that a consumer has a callback for."
  @spec tell(t(), term()) :: :ok
  def tell(nil, _event), do: :ok
  def tell(%__MODULE__{pid: nil}, _event), do: :ok
  def tell(handlers, event), do: Enum.each(all(handlers), &GenServer.cast(&1, {:client, event}))

  # Recipients get the client's events before the messages that follow them, because both come straight to them.
  defp all(%__MODULE__{pid: pid, recipients: recipients}), do: Enum.uniq([pid | recipients])

  @doc "Whether several handlers share the messages, by a key."
  @spec shared?(t()) :: boolean()
  def shared?(handlers), do: match?(%__MODULE__{recipients: [_, _ | _]}, handlers)

  @doc "Decides on messages with cumulative acknowledgements. These are written when those before them are decided on."
  @spec settle(consumer(), [Partition.decision()]) :: :ok
  def settle(%__MODULE__{pid: pid}, decisions), do: Partition.settle(pid, decisions)

  @doc "Handling has to end at the deadline."
  @spec stop_at(t(), integer()) :: :ok
  def stop_at(nil, _deadline), do: :ok
  def stop_at(%__MODULE__{settings: settings}, at), do: :atomics.put(settings.stop_at, 1, at)

  @doc "It ends after what has arrived."
  @spec finish(consumer(), nil | pid()) :: consumer()
  def finish(%__MODULE__{finishing: true} = handlers, _network), do: handlers

  def finish(handlers, network) do
    message = {:"$gen_cast", {:client, :finish}}

    for pid <- all(handlers),
        do: if(network, do: Network.fence(network, pid, message), else: send(pid, message))

    %{handlers | finishing: true}
  end

  @spec kill(t()) :: t()
  def kill(handlers) do
    if running?(handlers), do: kill_all(handlers.pid)
    handlers
  end

  # The handlers of a dealer too: a callback may have made them trap exits. What callbacks are linked to gets an
  # exit signal that it can trap.
  defp kill_all(pid) do
    {:links, links} = Process.info(pid, :links) || {:links, []}
    for link <- links, is_pid(link), worker?(link), do: Process.exit(link, :kill)
    Process.exit(pid, :kill)
  end

  defp worker?(pid) do
    with {:dictionary, dictionary} <- Process.info(pid, :dictionary),
         do: {:"$initial_call", {Worker, :init, 1}} in dictionary
  end

  defp now, do: System.monotonic_time(:millisecond)
end
