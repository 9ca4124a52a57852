defmodule Barytherium.Consumer.Partition do
  @moduledoc false
  # With the options `handlers: n` and `key:` this process stands for n `Barytherium.Consumer.Worker`s. The receive
  # loop sends each of them the messages with its keys, and the client its events, so nothing passes through here but
  # what has to be done in one place: a cumulative acknowledgement waits until all messages before it are handled, by
  # whichever worker. (RabbitMQ is never asked for one.)
  use GenServer, restart: :temporary

  alias Barytherium.Client.Acknowledgements
  alias Barytherium.Consumer.Workers
  alias Barytherium.{Frame, Native}
  alias Barytherium.Network.Sender

  # `settled`: what was decided on messages that others before them keep from being acknowledged.
  @enforce_keys [:client, :workers]
  defstruct [:client, :workers, session: nil, settled: %{}, finishing?: false]

  @typedoc "A message, what is to be done with it, and further headers of its NACK."
  @type decision :: {Acknowledgements.id(), :ack | :nack, Frame.frame_headers()}

  @doc "Starts it for the calling client. Returns when the callback `init/1` has, in all workers."
  @spec start_link(pid(), map()) :: GenServer.on_start()
  def start_link(client, settings), do: GenServer.start(__MODULE__, {:first, client, settings})

  @doc "Starts it again. The callbacks `init/1` run afterwards."
  @spec start_again(pid(), map()) :: pid()
  def start_again(client, settings) do
    {:ok, pid} = GenServer.start(__MODULE__, {:again, client, settings})
    pid
  end

  @doc "The processes that handle the messages of a partition that the calling client has just started."
  @spec workers(pid()) :: [pid(), ...]
  def workers(partition), do: receive(do: ({:workers, ^partition, workers} -> workers))

  @doc "What was decided on messages of subscriptions with cumulative acknowledgements. Workers cast it themselves."
  @spec settle(pid(), [decision()]) :: :ok
  def settle(partition, decisions), do: GenServer.cast(partition, {:settle, decisions})

  @impl true
  def init({how, client, settings}) do
    case Workers.start(how, client, Map.put(settings, :partition, self())) do
      {:ok, workers} ->
        # It is there when the client goes on. A call could find that one of them has ended again.
        send(client, {:workers, self(), workers})
        {:ok, %__MODULE__{client: client, workers: workers}}

      {:error, reason} ->
        {:stop, reason}
    end
  end

  @impl true
  def handle_call(_stray, _from, state), do: {:reply, {:error, :unknown_call}, state}

  @impl true
  def handle_cast({:settle, decisions}, %{session: session} = state) do
    decisions = Enum.filter(decisions, &open?(&1, session))

    settled =
      for {id, command, extra} <- decisions, into: state.settled, do: {id, {command, extra}}

    subscriptions = decisions |> Enum.map(fn {{id, _message}, _c, _e} -> id end) |> Enum.uniq()
    {frames, settled} = Enum.flat_map_reduce(subscriptions, settled, &contiguous(session, &1, &2))
    if frames != [], do: Sender.write(session.sender, frames)
    {:noreply, %{state | settled: settled}}
  end

  def handle_cast({:client, {:session, session}}, state),
    do: {:noreply, %{state | session: session, settled: %{}}}

  def handle_cast({:client, :finish}, state), do: {:noreply, %{state | finishing?: true}}
  def handle_cast(_event, state), do: {:noreply, state}

  # Not of an earlier connection, and not decided twice.
  defp open?(_decision, nil), do: false

  defp open?({{subscription, id}, _command, _extra}, session) do
    is_map_key(session.modes, subscription) and
      Native.is_unacknowledged(session.routes, subscription, id)
  end

  # The acknowledgements of the oldest messages, up to the first that nothing is decided on.
  defp contiguous(session, subscription, settled) do
    {decisions, settled} = take(session, subscription, settled, [])

    frames =
      decisions
      |> Enum.chunk_by(fn {_id, command, _extra} -> command end)
      |> Enum.flat_map(&frames(session, &1))

    {frames, settled}
  end

  defp take(session, subscription, settled, taken) do
    oldest = Native.first_unacknowledged(session.routes, subscription)

    case Map.pop(settled, {subscription, oldest}) do
      {nil, settled} ->
        {Enum.reverse(taken), settled}

      {{command, extra}, settled} ->
        Native.acknowledged(session.routes, subscription, oldest)
        take(session, subscription, settled, [{{subscription, oldest}, command, extra} | taken])
    end
  end

  # An ACK covers those before it, and so would a NACK: by then they are acknowledged.
  defp frames(session, [{_id, :ack, _extra} | _more] = decisions) do
    {id, :ack, extra} = List.last(decisions)
    [Acknowledgements.frame(session, :ack, id, extra)]
  end

  defp frames(session, decisions),
    do:
      for({id, :nack, extra} <- decisions, do: Acknowledgements.frame(session, :nack, id, extra))

  @impl true
  def handle_info({:EXIT, pid, reason}, state) do
    if Workers.ours?(pid, reason, state),
      do: Workers.ended(pid, reason, state),
      else: {:noreply, state}
  end

  def handle_info(_stray, state), do: {:noreply, state}

  @impl true
  def terminate(_reason, state), do: Workers.kill(state.workers)
end
