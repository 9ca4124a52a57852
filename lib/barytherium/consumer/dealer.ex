defmodule Barytherium.Consumer.Dealer do
  @moduledoc false
  # With the option `handlers: n` this process is in the place of the one `Barytherium.Consumer.Worker`. It
  # starts n of them, and gives each message to one that is free. While none is free it takes nothing from its
  # mailbox, so the receive loop sees that they are behind.
  use GenServer, restart: :temporary

  alias Barytherium.Consumer.Workers
  alias Barytherium.Secret

  # `several?`: whether more than one may handle the messages of this connection.
  @enforce_keys [:client, :workers, :free, :batches?]
  defstruct [:client, :workers, :free, :batches?, several?: true, finishing?: false]

  @doc "Starts it for the calling client. Returns when the callback `init/1` has, in all of them."
  @spec start_link(pid(), map()) :: GenServer.on_start()
  def start_link(client, settings),
    do: GenServer.start(__MODULE__, {:first, client, settings})

  @doc "Starts it again. The callbacks `init/1` run afterwards."
  @spec start_again(pid(), map()) :: pid()
  def start_again(client, settings) do
    {:ok, pid} = GenServer.start(__MODULE__, {:again, client, settings})
    pid
  end

  @impl true
  def init({how, client, %{module: module} = settings}) do
    case Workers.start(how, client, Map.put(settings, :dealer, self())) do
      {:ok, workers} ->
        batches? = function_exported?(module, :handle_batch, 2)
        {:ok, %__MODULE__{client: client, workers: workers, free: workers, batches?: batches?}}

      {:error, reason} ->
        {:stop, reason}
    end
  end

  @impl true
  def handle_cast({:barytherium, :frames, {messages, sender, read_at}}, dealer),
    do: deal(messages, share(messages, dealer), {sender, read_at}, dealer)

  # An acknowledgement that covers earlier messages would cover those that others have not handled.
  def handle_cast({:client, {:session, session}} = event, dealer) do
    cumulative? = Enum.any?(session.modes, &match?({_id, :client}, &1))
    {:noreply, tell(event, %{dealer | several?: not cumulative?})}
  end

  # All messages were dealt.
  def handle_cast({:client, :finish} = event, dealer),
    do: {:noreply, tell(event, %{dealer | finishing?: true})}

  def handle_cast(event, dealer), do: {:noreply, tell(event, dealer)}

  @impl true
  def handle_info({:free, worker}, dealer), do: {:noreply, freed(worker, dealer)}
  def handle_info({:busy, worker}, dealer), do: {:noreply, busy(worker, dealer)}

  def handle_info({:EXIT, pid, reason}, dealer),
    do:
      if(Workers.ours?(pid, reason, dealer),
        do: Workers.ended(pid, reason, dealer),
        else: {:noreply, dealer}
      )

  def handle_info(message, dealer) do
    Enum.each(dealer.workers, &send(&1, message))
    {:noreply, dealer}
  end

  @impl true
  def handle_call(_stray, _from, dealer), do: {:reply, {:error, :unknown_call}, dealer}

  defp tell(event, dealer) do
    Enum.each(dealer.workers, &GenServer.cast(&1, event))
    dealer
  end

  # How many messages a worker gets at a time. A batch is for all that are free to have a part of it.
  defp share(messages, %{batches?: true, workers: workers}),
    do: ceil(length(messages) / length(workers))

  defp share(_messages, _dealer), do: 1

  defp deal([], _share, _from, dealer), do: {:noreply, dealer}

  defp deal(messages, share, {sender, read_at} = from, dealer) do
    case next(dealer) do
      [worker | _others] ->
        {now, later} = Enum.split(messages, share)
        GenServer.cast(worker, {:barytherium, :frames, {now, sender, read_at}})
        deal(later, share, from, %{dealer | free: List.delete(dealer.free, worker)})

      [] ->
        receive do
          {:free, worker} ->
            deal(messages, share, from, freed(worker, dealer))

          {:busy, worker} ->
            deal(messages, share, from, busy(worker, dealer))

          {:EXIT, pid, reason} ->
            if Workers.ours?(pid, reason, dealer),
              do: Workers.ended(pid, reason, dealer),
              else: deal(messages, share, from, dealer)
        end
    end
  end

  defp next(%{several?: true, free: free}), do: free

  defp next(%{free: free, workers: [first | _others]}),
    do: if(first in free, do: [first], else: [])

  # Whoever was free first is the next.
  defp freed(worker, dealer),
    do: if(worker in dealer.free, do: dealer, else: %{dealer | free: dealer.free ++ [worker]})

  # It handles a batch whose time is over. A share that was given to it before comes after that.
  defp busy(worker, dealer), do: %{dealer | free: List.delete(dealer.free, worker)}

  @impl true
  def terminate(_reason, dealer), do: Workers.kill(dealer.workers)

  @doc false
  # The message may hold bodies.
  @impl {:format_status, 1} in GenServer.behaviour_info(:callbacks)
  defdelegate format_status(status), to: Secret, as: :without_messages
end
