"""The verbs: infinitive and present tense in four languages, written out in full.

Each line is `english base/third person | italian | german | french | spanish`; a foreign entry is
the infinitive and the forms for I, you, he/she, we, they, then after `+` a fixed complement.
Nothing is derived by rule, because the irregular verbs are the common ones.
"""

from worker.demo.clause import Verb, VerbForms


def _forms(entry: str) -> VerbForms:
    conjugation, _, complement = (part.strip() for part in entry.partition("+"))
    infinitive, *present = conjugation.split()
    assert len(present) == 5, entry
    return VerbForms(infinitive, tuple(present), complement)


def _verb(line: str) -> Verb:
    english, it, de, fr, es = (part.strip() for part in line.split("|"))
    base, third = english.split("/")
    return Verb(base, third, _forms(it), _forms(de), _forms(fr), _forms(es))


def _table(text: str) -> dict[str, Verb]:
    verbs = [_verb(line) for line in text.strip().splitlines()]
    return {verb.en: verb for verb in verbs}


TRANSITIVE = _table("""
love/loves | amare amo ami ama amiamo amano | lieben liebe liebst liebt lieben lieben | aimer aime aimes aime aimons aiment | amar amo amas ama amamos aman
like/likes | piacere piaccio piaci piace piacciamo piacciono | mögen mag magst mag mögen mögen | aimer aime aimes aime aimons aiment + bien | gustar gusto gustas gusta gustamos gustan
hate/hates | odiare odio odi odia odiamo odiano | hassen hasse hasst hasst hassen hassen | détester déteste détestes déteste détestons détestent | odiar odio odias odia odiamos odian
prefer/prefers | preferire preferisco preferisci preferisce preferiamo preferiscono | bevorzugen bevorzuge bevorzugst bevorzugt bevorzugen bevorzugen | préférer préfère préfères préfère préférons préfèrent | preferir prefiero prefieres prefiere preferimos prefieren
read/reads | leggere leggo leggi legge leggiamo leggono | lesen lese liest liest lesen lesen | lire lis lis lit lisons lisent | leer leo lees lee leemos leen
write/writes | scrivere scrivo scrivi scrive scriviamo scrivono | schreiben schreibe schreibst schreibt schreiben schreiben | écrire écris écris écrit écrivons écrivent | escribir escribo escribes escribe escribimos escriben
buy/buys | comprare compro compri compra compriamo comprano | kaufen kaufe kaufst kauft kaufen kaufen | acheter achète achètes achète achetons achètent | comprar compro compras compra compramos compran
sell/sells | vendere vendo vendi vende vendiamo vendono | verkaufen verkaufe verkaufst verkauft verkaufen verkaufen | vendre vends vends vend vendons vendent | vender vendo vendes vende vendemos venden
see/sees | vedere vedo vedi vede vediamo vedono | sehen sehe siehst sieht sehen sehen | voir vois vois voit voyons voient | ver veo ves ve vemos ven
have/has | avere ho hai ha abbiamo hanno | haben habe hast hat haben haben | avoir ai as a avons ont | tener tengo tienes tiene tenemos tienen
want/wants | volere voglio vuoi vuole vogliamo vogliono | wollen will willst will wollen wollen | vouloir veux veux veut voulons veulent | querer quiero quieres quiere queremos quieren
eat/eats | mangiare mangio mangi mangia mangiamo mangiano | essen esse isst isst essen essen | manger mange manges mange mangeons mangent | comer como comes come comemos comen
drink/drinks | bere bevo bevi beve beviamo bevono | trinken trinke trinkst trinkt trinken trinken | boire bois bois boit buvons boivent | beber bebo bebes bebe bebemos beben
know/knows | conoscere conosco conosci conosce conosciamo conoscono | kennen kenne kennst kennt kennen kennen | connaître connais connais connaît connaissons connaissent | conocer conozco conoces conoce conocemos conocen
look for/looks for | cercare cerco cerchi cerca cerchiamo cercano | suchen suche suchst sucht suchen suchen | chercher cherche cherches cherche cherchons cherchent | buscar busco buscas busca buscamos buscan
find/finds | trovare trovo trovi trova troviamo trovano | finden finde findest findet finden finden | trouver trouve trouves trouve trouvons trouvent | encontrar encuentro encuentras encuentra encontramos encuentran
open/opens | aprire apro apri apre apriamo aprono | öffnen öffne öffnest öffnet öffnen öffnen | ouvrir ouvre ouvres ouvre ouvrons ouvrent | abrir abro abres abre abrimos abren
close/closes | chiudere chiudo chiudi chiude chiudiamo chiudono | schließen schließe schließt schließt schließen schließen | fermer ferme fermes ferme fermons ferment | cerrar cierro cierras cierra cerramos cierran
wash/washes | lavare lavo lavi lava laviamo lavano | waschen wasche wäschst wäscht waschen waschen | laver lave laves lave lavons lavent | lavar lavo lavas lava lavamos lavan
listen to/listens to | ascoltare ascolto ascolti ascolta ascoltiamo ascoltano | hören höre hörst hört hören hören | écouter écoute écoutes écoute écoutons écoutent | escuchar escucho escuchas escucha escuchamos escuchan
cook/cooks | cucinare cucino cucini cucina cuciniamo cucinano | kochen koche kochst kocht kochen kochen | cuisiner cuisine cuisines cuisine cuisinons cuisinent | cocinar cocino cocinas cocina cocinamos cocinan
""")  # noqa: E501

INTRANSITIVE = _table("""
work/works | lavorare lavoro lavori lavora lavoriamo lavorano | arbeiten arbeite arbeitest arbeitet arbeiten arbeiten | travailler travaille travailles travaille travaillons travaillent | trabajar trabajo trabajas trabaja trabajamos trabajan
sleep/sleeps | dormire dormo dormi dorme dormiamo dormono | schlafen schlafe schläfst schläft schlafen schlafen | dormir dors dors dort dormons dorment | dormir duermo duermes duerme dormimos duermen
sing/sings | cantare canto canti canta cantiamo cantano | singen singe singst singt singen singen | chanter chante chantes chante chantons chantent | cantar canto cantas canta cantamos cantan
dance/dances | ballare ballo balli balla balliamo ballano | tanzen tanze tanzt tanzt tanzen tanzen | danser danse danses danse dansons dansent | bailar bailo bailas baila bailamos bailan
swim/swims | nuotare nuoto nuoti nuota nuotiamo nuotano | schwimmen schwimme schwimmst schwimmt schwimmen schwimmen | nager nage nages nage nageons nagent | nadar nado nadas nada nadamos nadan
run/runs | correre corro corri corre corriamo corrono | laufen laufe läufst läuft laufen laufen | courir cours cours court courons courent | correr corro corres corre corremos corren
wait/waits | aspettare aspetto aspetti aspetta aspettiamo aspettano | warten warte wartest wartet warten warten | attendre attends attends attend attendons attendent | esperar espero esperas espera esperamos esperan
play/plays | giocare gioco giochi gioca giochiamo giocano | spielen spiele spielst spielt spielen spielen | jouer joue joues joue jouons jouent | jugar juego juegas juega jugamos juegan
study/studies | studiare studio studi studia studiamo studiano | studieren studiere studierst studiert studieren studieren | étudier étudie étudies étudie étudions étudient | estudiar estudio estudias estudia estudiamos estudian
play football/plays football | giocare gioco giochi gioca giochiamo giocano + a calcio | spielen spiele spielst spielt spielen spielen + Fußball | jouer joue joues joue jouons jouent + au football | jugar juego juegas juega jugamos juegan + al fútbol
play chess/plays chess | giocare gioco giochi gioca giochiamo giocano + a scacchi | spielen spiele spielst spielt spielen spielen + Schach | jouer joue joues joue jouons jouent + aux échecs | jugar juego juegas juega jugamos juegan + al ajedrez
play the piano/plays the piano | suonare suono suoni suona suoniamo suonano + il pianoforte | spielen spiele spielst spielt spielen spielen + Klavier | jouer joue joues joue jouons jouent + du piano | tocar toco tocas toca tocamos tocan + el piano
play the guitar/plays the guitar | suonare suono suoni suona suoniamo suonano + la chitarra | spielen spiele spielst spielt spielen spielen + Gitarre | jouer joue joues joue jouons jouent + de la guitare | tocar toco tocas toca tocamos tocan + la guitarra
""")  # noqa: E501

MOTION = _table("""
go/goes | andare vado vai va andiamo vanno | gehen gehe gehst geht gehen gehen | aller vais vas va allons vont | ir voy vas va vamos van
travel/travels | viaggiare viaggio viaggi viaggia viaggiamo viaggiano | reisen reise reist reist reisen reisen | voyager voyage voyages voyage voyageons voyagent | viajar viajo viajas viaja viajamos viajan
live/lives | abitare abito abiti abita abitiamo abitano | wohnen wohne wohnst wohnt wohnen wohnen | habiter habite habites habite habitons habitent | vivir vivo vives vive vivimos viven
""")  # noqa: E501

MODAL = _table("""
want to/wants to | volere voglio vuoi vuole vogliamo vogliono | wollen will willst will wollen wollen | vouloir veux veux veut voulons veulent | querer quiero quieres quiere queremos quieren
can/can | potere posso puoi può possiamo possono | können kann kannst kann können können | pouvoir peux peux peut pouvons peuvent | poder puedo puedes puede podemos pueden
must/must | dovere devo devi deve dobbiamo devono | müssen muss musst muss müssen müssen | devoir dois dois doit devons doivent | deber debo debes debe debemos deben
""")  # noqa: E501

_SPOKEN = _table("""
speak/speaks | parlare parlo parli parla parliamo parlano | sprechen spreche sprichst spricht sprechen sprechen | parler parle parles parle parlons parlent | hablar hablo hablas habla hablamos hablan
learn/learns | imparare imparo impari impara impariamo imparano | lernen lerne lernst lernt lernen lernen | apprendre apprends apprends apprend apprenons apprennent | aprender aprendo aprendes aprende aprendemos aprenden
""")  # noqa: E501

_TONGUES = [
    ("English", "inglese", "Englisch", "anglais", "inglés"),
    ("Italian", "italiano", "Italienisch", "italien", "italiano"),
    ("German", "tedesco", "Deutsch", "allemand", "alemán"),
    ("French", "francese", "Französisch", "français", "francés"),
    ("Spanish", "spagnolo", "Spanisch", "espagnol", "español"),
]

# "to learn" takes the article before a language in Italian and in French, "to speak" does not.
_ARTICLES_IT = {"inglese": "l'", "italiano": "l'", "spagnolo": "lo "}
_ARTICLES_FR = {"français": "le "}


def _with_tongue(verb: Verb, tongue: tuple[str, str, str, str, str]) -> Verb:
    en, it, de, fr, es = tongue
    if verb.en == "learn":
        it = _ARTICLES_IT.get(it, "il ") + it
        fr = _ARTICLES_FR.get(fr, "l'") + fr
    return Verb(
        f"{verb.en} {en}",
        f"{verb.en_third} {en}",
        VerbForms(verb.it.infinitive, verb.it.present, it),
        VerbForms(verb.de.infinitive, verb.de.present, de),
        VerbForms(verb.fr.infinitive, verb.fr.present, fr),
        VerbForms(verb.es.infinitive, verb.es.present, es),
    )


LINGUISTIC = {
    verb.en: verb
    for verb in (_with_tongue(verb, tongue) for verb in _SPOKEN.values() for tongue in _TONGUES)
}

BE_IT = ("sono", "sei", "è", "siamo", "sono")
BE_DE = ("bin", "bist", "ist", "sind", "sind")
BE_FR = ("suis", "es", "est", "sommes", "sont")
SER_ES = ("soy", "eres", "es", "somos", "son")
ESTAR_ES = ("estoy", "estás", "está", "estamos", "están")
