"""The words other than verbs: nouns, adjectives, pronouns, names and fixed phrases.

Tables are text, one entry a line, columns split by `|` in the order English, Italian, German,
French, Spanish; the parsers below say how a column reads. No word here is ambiguous in English:
each entry has exactly one rendering per language.
"""

from worker.demo.clause import Adjective, Name, Noun, NounForms, Phrase, Pronoun


def _rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")] for line in text.strip().splitlines()]


def _noun_forms(cell: str) -> NounForms:
    """`singular plural gender [accusative]`, with `_` for a space inside a form."""
    singular, plural, gender, *accusative = (form.replace("_", " ") for form in cell.split())
    return NounForms(singular, plural, gender, accusative[0] if accusative else singular)


def _nouns(kind: str, text: str) -> list[Noun]:
    nouns = []
    for english, *foreign in _rows(text):
        singular, plural = english.split("/")
        it, de, fr, es = (_noun_forms(cell) for cell in foreign)
        nouns.append(Noun(singular, plural, kind, it, de, fr, es))
    return nouns


def _phrases(text: str) -> list[Phrase]:
    return [Phrase(*row) for row in _rows(text)]


PEOPLE = _nouns(
    "person",
    """
boy/boys | ragazzo ragazzi m | Junge Jungen m Jungen | garçon garçons m | chico chicos m
girl/girls | ragazza ragazze f | Mädchen Mädchen n | fille filles f | chica chicas f
man/men | uomo uomini m | Mann Männer m | homme hommes m | hombre hombres m
woman/women | donna donne f | Frau Frauen f | femme femmes f | mujer mujeres f
child/children | bambino bambini m | Kind Kinder n | enfant enfants m | niño niños m
teacher/teachers | insegnante insegnanti m | Lehrer Lehrer m | professeur professeurs m | profesor profesores m
doctor/doctors | medico medici m | Arzt Ärzte m | médecin médecins m | médico médicos m
student/students | studente studenti m | Student Studenten m Studenten | étudiant étudiants m | estudiante estudiantes m
neighbor/neighbors | vicino vicini m | Nachbar Nachbarn m Nachbarn | voisin voisins m | vecino vecinos m
friend/friends | amico amici m | Freund Freunde m | ami amis m | amigo amigos m
""",  # noqa: E501
)

FAMILY = _nouns(
    "family",
    """
mother/mothers | madre madri f | Mutter Mütter f | mère mères f | madre madres f
father/fathers | padre padri m | Vater Väter m | père pères m | padre padres m
brother/brothers | fratello fratelli m | Bruder Brüder m | frère frères m | hermano hermanos m
sister/sisters | sorella sorelle f | Schwester Schwestern f | sœur sœurs f | hermana hermanas f
son/sons | figlio figli m | Sohn Söhne m | fils fils m | hijo hijos m
daughter/daughters | figlia figlie f | Tochter Töchter f | fille filles f | hija hijas f
uncle/uncles | zio zii m | Onkel Onkel m | oncle oncles m | tío tíos m
aunt/aunts | zia zie f | Tante Tanten f | tante tantes f | tía tías f
""",
)

ANIMALS = _nouns(
    "animal",
    """
dog/dogs | cane cani m | Hund Hunde m | chien chiens m | perro perros m
cat/cats | gatto gatti m | Katze Katzen f | chat chats m | gato gatos m
horse/horses | cavallo cavalli m | Pferd Pferde n | cheval chevaux m | caballo caballos m
bird/birds | uccello uccelli m | Vogel Vögel m | oiseau oiseaux m | pájaro pájaros m
cow/cows | mucca mucche f | Kuh Kühe f | vache vaches f | vaca vacas f
""",
)

TEXTS = _nouns(
    "text",
    """
book/books | libro libri m | Buch Bücher n | livre livres m | libro libros m
letter/letters | lettera lettere f | Brief Briefe m | lettre lettres f | carta cartas f
poem/poems | poesia poesie f | Gedicht Gedichte n | poème poèmes m | poema poemas m
newspaper/newspapers | giornale giornali m | Zeitung Zeitungen f | journal journaux m | periódico periódicos m
story/stories | storia storie f | Geschichte Geschichten f | histoire histoires f | historia historias f
""",  # noqa: E501
)

THINGS = _nouns(
    "thing",
    """
house/houses | casa case f | Haus Häuser n | maison maisons f | casa casas f
car/cars | macchina macchine f | Auto Autos n | voiture voitures f | coche coches m
bicycle/bicycles | bicicletta biciclette f | Fahrrad Fahrräder n | vélo vélos m | bicicleta bicicletas f
table/tables | tavolo tavoli m | Tisch Tische m | table tables f | mesa mesas f
chair/chairs | sedia sedie f | Stuhl Stühle m | chaise chaises f | silla sillas f
lamp/lamps | lampada lampade f | Lampe Lampen f | lampe lampes f | lámpara lámparas f
mirror/mirrors | specchio specchi m | Spiegel Spiegel m | miroir miroirs m | espejo espejos m
umbrella/umbrellas | ombrello ombrelli m | Regenschirm Regenschirme m | parapluie parapluies m | paraguas paraguas m
phone/phones | telefono telefoni m | Telefon Telefone n | téléphone téléphones m | teléfono teléfonos m
computer/computers | computer computer m | Computer Computer m | ordinateur ordinateurs m | ordenador ordenadores m
key/keys | chiave chiavi f | Schlüssel Schlüssel m | clé clés f | llave llaves f
flower/flowers | fiore fiori m | Blume Blumen f | fleur fleurs f | flor flores f
ticket/tickets | biglietto biglietti m | Fahrkarte Fahrkarten f | billet billets m | billete billetes m
shirt/shirts | camicia camicie f | Hemd Hemden n | chemise chemises f | camisa camisas f
coat/coats | cappotto cappotti m | Mantel Mäntel m | manteau manteaux m | abrigo abrigos m
shoe/shoes | scarpa scarpe f | Schuh Schuhe m | chaussure chaussures f | zapato zapatos m
hat/hats | cappello cappelli m | Hut Hüte m | chapeau chapeaux m | sombrero sombreros m
backpack/backpacks | zaino zaini m | Rucksack Rucksäcke m | sac_à_dos sacs_à_dos m | mochila mochilas f
""",  # noqa: E501
)

OPENINGS = _nouns(
    "opening",
    """
door/doors | porta porte f | Tür Türen f | porte portes f | puerta puertas f
window/windows | finestra finestre f | Fenster Fenster n | fenêtre fenêtres f | ventana ventanas f
box/boxes | scatola scatole f | Schachtel Schachteln f | boîte boîtes f | caja cajas f
suitcase/suitcases | valigia valigie f | Koffer Koffer m | valise valises f | maleta maletas f
""",
)

FOODS = _nouns(
    "food",
    """
apple/apples | mela mele f | Apfel Äpfel m | pomme pommes f | manzana manzanas f
orange/oranges | arancia arance f | Orange Orangen f | orange oranges f | naranja naranjas f
banana/bananas | banana banane f | Banane Bananen f | banane bananes f | plátano plátanos m
tomato/tomatoes | pomodoro pomodori m | Tomate Tomaten f | tomate tomates f | tomate tomates m
potato/potatoes | patata patate f | Kartoffel Kartoffeln f | pomme_de_terre pommes_de_terre f | patata patatas f
cake/cakes | torta torte f | Kuchen Kuchen m | gâteau gâteaux m | pastel pasteles m
pizza/pizzas | pizza pizze f | Pizza Pizzas f | pizza pizzas f | pizza pizzas f
""",  # noqa: E501
)

# Mass nouns: the plural column is unused.
DISHES = _nouns(
    "dish",
    """
bread/bread | pane pane m | Brot Brot n | pain pain m | pan pan m
cheese/cheese | formaggio formaggio m | Käse Käse m | fromage fromage m | queso queso m
rice/rice | riso riso m | Reis Reis m | riz riz m | arroz arroz m
meat/meat | carne carne f | Fleisch Fleisch n | viande viande f | carne carne f
fish/fish | pesce pesce m | Fisch Fisch m | poisson poisson m | pescado pescado m
soup/soup | zuppa zuppa f | Suppe Suppe f | soupe soupe f | sopa sopa f
""",
)

DRINKS = _nouns(
    "drink",
    """
water/water | acqua acqua f | Wasser Wasser n | eau eau f | agua agua f
milk/milk | latte latte m | Milch Milch f | lait lait m | leche leche f
coffee/coffee | caffè caffè m | Kaffee Kaffee m | café café m | café café m
tea/tea | tè tè m | Tee Tee m | thé thé m | té té m
wine/wine | vino vino m | Wein Wein m | vin vin m | vino vino m
beer/beer | birra birra f | Bier Bier n | bière bière f | cerveza cerveza f
""",
)

PASTIMES = _nouns(
    "pastime",
    """
music/music | musica musica f | Musik Musik f | musique musique f | música música f
football/football | calcio calcio m | Fußball Fußball m | football football m | fútbol fútbol m
art/art | arte arte f | Kunst Kunst f | art art m | arte arte m
""",
)


def _adjectives(text: str, *, precedes_in_french: bool = False) -> list[Adjective]:
    """Italian and Spanish: ms fs mp fp. German: stem. French: ms fs mp fp [ms before a vowel].

    A single form does not change. English may end in `*`: Spanish says it with "estar".
    """
    adjectives = []
    for en, it, de, fr, es in _rows(text):
        adjectives.append(
            Adjective(
                en.rstrip("*"),
                _agreement(it),
                de,
                _agreement(fr),
                _agreement(es),
                is_temporary=en.endswith("*"),
                precedes_in_french=precedes_in_french,
            )
        )
    return adjectives


def _agreement(cell: str) -> tuple[str, ...]:
    forms = tuple(cell.split())
    return forms * 4 if len(forms) == 1 else forms


COLOURS = _adjectives("""
red | rosso rossa rossi rosse | rot | rouge rouge rouges rouges | rojo roja rojos rojas
green | verde verde verdi verdi | grün | vert verte verts vertes | verde verde verdes verdes
blue | blu | blau | bleu bleue bleus bleues | azul azul azules azules
black | nero nera neri nere | schwarz | noir noire noirs noires | negro negra negros negras
white | bianco bianca bianchi bianche | weiß | blanc blanche blancs blanches | blanco blanca blancos blancas
yellow | giallo gialla gialli gialle | gelb | jaune jaune jaunes jaunes | amarillo amarilla amarillos amarillas
""")  # noqa: E501

SIZES_AND_AGES = _adjectives(
    """
big | grande grande grandi grandi | groß | grand grande grands grandes | grande grande grandes grandes
small | piccolo piccola piccoli piccole | klein | petit petite petits petites | pequeño pequeña pequeños pequeñas
new | nuovo nuova nuovi nuove | neu | nouveau nouvelle nouveaux nouvelles nouvel | nuevo nueva nuevos nuevas
old | vecchio vecchia vecchi vecchie | alt | vieux vieille vieux vieilles vieil | viejo vieja viejos viejas
""",  # noqa: E501
    precedes_in_french=True,
)

ATTRIBUTES = COLOURS + SIZES_AND_AGES

QUALITIES = _adjectives("""
happy* | felice felice felici felici | glücklich | heureux heureuse heureux heureuses | feliz feliz felices felices
sad* | triste triste tristi tristi | traurig | triste triste tristes tristes | triste triste tristes tristes
tired* | stanco stanca stanchi stanche | müde | fatigué fatiguée fatigués fatiguées | cansado cansada cansados cansadas
sick* | malato malata malati malate | krank | malade malade malades malades | enfermo enferma enfermos enfermas
tall | alto alta alti alte | groß | grand grande grands grandes | alto alta altos altas
young | giovane giovane giovani giovani | jung | jeune jeune jeunes jeunes | joven joven jóvenes jóvenes
rich | ricco ricca ricchi ricche | reich | riche riche riches riches | rico rica ricos ricas
strong | forte forte forti forti | stark | fort forte forts fortes | fuerte fuerte fuertes fuertes
intelligent | intelligente intelligente intelligenti intelligenti | intelligent | intelligent intelligente intelligents intelligentes | inteligente inteligente inteligentes inteligentes
nice | simpatico simpatica simpatici simpatiche | nett | sympathique sympathique sympathiques sympathiques | simpático simpática simpáticos simpáticas
""")  # noqa: E501

# Romance languages "have" a state; German has it as a noun, with "kein" in the negative.
STATES = _phrases("""
hungry | fame | Hunger | faim | hambre
thirsty | sete | Durst | soif | sed
""")

PRONOUNS = [
    Pronoun("I", "me", 0, "m", "io", "ich", "je", "yo", "mi", "mich", "me", "me"),
    Pronoun("you", "you", 1, "m", "tu", "du", "tu", "tú", "ti", "dich", "te", "te"),
    Pronoun("he", "him", 2, "m", "lui", "er", "il", "él", "lo", "ihn", "le", "lo"),
    Pronoun("she", "her", 2, "f", "lei", "sie", "elle", "ella", "la", "sie", "la", "la"),
    Pronoun("we", "us", 3, "m", "noi", "wir", "nous", "nosotros", "ci", "uns", "nous", "nos"),
    Pronoun("they", "them", 4, "m", "loro", "sie", "ils", "ellos", "li", "sie", "les", "los"),
]

NAMES = [
    Name(text, gender)
    for gender, texts in (
        ("m", "Marco Paul Peter Tom Lucas David Martin Daniel Oscar Leo"),
        ("f", "Anna Laura Sofia Emma Julia Sarah Clara Nina Eva Alice"),
    )
    for text in texts.split()
]

GERUNDS = _phrases("""
programming | programmare | Programmieren | programmer | programar
swimming | nuotare | Schwimmen | nager | nadar
reading | leggere | Lesen | lire | leer
cooking | cucinare | Kochen | cuisiner | cocinar
dancing | ballare | Tanzen | danser | bailar
singing | cantare | Singen | chanter | cantar
running | correre | Laufen | courir | correr
traveling | viaggiare | Reisen | voyager | viajar
writing | scrivere | Schreiben | écrire | escribir
drawing | disegnare | Zeichnen | dessiner | dibujar
painting | dipingere | Malen | peindre | pintar
working | lavorare | Arbeiten | travailler | trabajar
sleeping | dormire | Schlafen | dormir | dormir
learning | imparare | Lernen | apprendre | aprender
studying | studiare | Studieren | étudier | estudiar
fishing | pescare | Angeln | pêcher | pescar
skiing | sciare | Skifahren | skier | esquiar
cycling | andare in bicicletta | Radfahren | faire du vélo | montar en bicicleta
playing | giocare | Spielen | jouer | jugar
eating | mangiare | Essen | manger | comer
teaching | insegnare | Unterrichten | enseigner | enseñar
waiting | aspettare | Warten | attendre | esperar
laughing | ridere | Lachen | rire | reír
dreaming | sognare | Träumen | rêver | soñar
""")

PLACES = _phrases("""
in the garden | nel giardino | im Garten | dans le jardin | en el jardín
in the park | nel parco | im Park | dans le parc | en el parque
in the kitchen | in cucina | in der Küche | dans la cuisine | en la cocina
in the house | nella casa | im Haus | dans la maison | en la casa
in the office | in ufficio | im Büro | dans le bureau | en la oficina
in the library | in biblioteca | in der Bibliothek | dans la bibliothèque | en la biblioteca
in the city | in città | in der Stadt | en ville | en la ciudad
in the restaurant | nel ristorante | im Restaurant | dans le restaurant | en el restaurante
at home | a casa | zu Hause | à la maison | en casa
at school | a scuola | in der Schule | à l'école | en la escuela
at the beach | in spiaggia | am Strand | à la plage | en la playa
at the station | alla stazione | am Bahnhof | à la gare | en la estación
""")

# Where a thing may be.
SPOTS = _phrases("""
on the table | sul tavolo | auf dem Tisch | sur la table | sobre la mesa
under the table | sotto il tavolo | unter dem Tisch | sous la table | debajo de la mesa
on the chair | sulla sedia | auf dem Stuhl | sur la chaise | sobre la silla
in the box | nella scatola | in der Schachtel | dans la boîte | en la caja
in the car | nella macchina | im Auto | dans la voiture | en el coche
""")

LOCALITIES = _phrases("""
in Rome | a Roma | in Rom | à Rome | en Roma
in Berlin | a Berlino | in Berlin | à Berlin | en Berlín
in Paris | a Parigi | in Paris | à Paris | en París
in Madrid | a Madrid | in Madrid | à Madrid | en Madrid
in London | a Londra | in London | à Londres | en Londres
in Italy | in Italia | in Italien | en Italie | en Italia
in Germany | in Germania | in Deutschland | en Allemagne | en Alemania
in France | in Francia | in Frankreich | en France | en Francia
in Spain | in Spagna | in Spanien | en Espagne | en España
""")

DESTINATIONS = _phrases("""
to school | a scuola | zur Schule | à l'école | a la escuela
to the beach | in spiaggia | zum Strand | à la plage | a la playa
to the market | al mercato | zum Markt | au marché | al mercado
to the station | alla stazione | zum Bahnhof | à la gare | a la estación
to the park | al parco | zum Park | au parc | al parque
to the library | in biblioteca | zur Bibliothek | à la bibliothèque | a la biblioteca
to the cinema | al cinema | ins Kino | au cinéma | al cine
home | a casa | nach Hause | à la maison | a casa
""")

JOURNEYS = _phrases("""
to Rome | a Roma | nach Rom | à Rome | a Roma
to Berlin | a Berlino | nach Berlin | à Berlin | a Berlín
to Paris | a Parigi | nach Paris | à Paris | a París
to Madrid | a Madrid | nach Madrid | à Madrid | a Madrid
to London | a Londra | nach London | à Londres | a Londres
to Italy | in Italia | nach Italien | en Italie | a Italia
to Germany | in Germania | nach Deutschland | en Allemagne | a Alemania
to France | in Francia | nach Frankreich | en France | a Francia
to Spain | in Spagna | nach Spanien | en Espagne | a España
""")

TIMES = _phrases("""
today | oggi | heute | aujourd'hui | hoy
now | adesso | jetzt | maintenant | ahora
every day | ogni giorno | jeden Tag | tous les jours | todos los días
every week | ogni settimana | jede Woche | chaque semaine | cada semana
in the morning | la mattina | am Morgen | le matin | por la mañana
in the evening | la sera | am Abend | le soir | por la noche
on Sunday | domenica | am Sonntag | dimanche | el domingo
on Monday | lunedì | am Montag | lundi | el lunes
""")

NEVER = Phrase("never", "mai", "nie", "jamais", "nunca")
FREQUENCIES = [
    *_phrases("""
always | sempre | immer | toujours | siempre
often | spesso | oft | souvent | a menudo
sometimes | a volte | manchmal | parfois | a veces
"""),
    NEVER,
]
